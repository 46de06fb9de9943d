"""Who may use a control plane."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.types import Scope

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.requests.callers.key_callers import KeyCallers
from llama_deploy.errors import ConfigError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.callers import AccessScope, Caller
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.web.edge.acting import acting_for
from llama_deploy.web.edge.authentication import Authenticator
from llama_deploy.web.edge.bearer_tokens import BearerTokens, CallerSource, FixedKeys
from llama_deploy.web.edge.custom_authenticators import caller_by, load_authenticator
from llama_deploy.web.edge.oidc_callers import OidcCallers, OidcSettings

_ADMIN: Final = Caller("admin key", DEFAULT_TENANT, frozenset({AccessScope.ADMIN}))
_OWN_SERVICES: Final = Caller(
    "own services",
    DEFAULT_TENANT,
    frozenset(
        {
            AccessScope.SERVICES_HOST,
            AccessScope.TASKS_READ,
            AccessScope.TASKS_WRITE,
            AccessScope.INBOX_ANSWER,
        }
    ),
)
"""The services that this process hosts, and those of its children. Their steps may submit tasks."""


def requires_keys(config: ControlPlaneConfig) -> bool:
    """Whether callers need a key.

    Raises:
        ConfigError: They do not, but there is one; or a setting is missing.
    """
    for name in ("admin_key", "oidc_issuer", "authenticator"):
        if config.authentication == "off" and getattr(config, name) is not None:
            raise ConfigError(
                f"{name} has no effect, because authentication is off; set authentication to `keys`, or"
                f" remove {name}"
            )
    if (config.oidc_issuer is None) is not (config.oidc_audience is None):
        raise ConfigError(
            "oidc_issuer and oidc_audience belong together: without its audience, tokens for other programs"
            " would be accepted; set both"
        )
    return config.authentication != "off"


class ControlPlaneCallers(Authenticator):
    """Identifies the callers of a control plane with `authentication`, and of the queue that runs beside it.

    Args:
        config: The settings of the control plane.
        store: Has the API keys. The caller closes it.

    Raises:
        ConfigError: The issuer or the authenticator of the settings cannot be used.
    """

    def __init__(self, config: ControlPlaneConfig, store: StateStore) -> None:
        self.store = store
        self.key_callers = KeyCallers(store)
        self.process_key = secrets.token_urlsafe(32)
        """The key of the services of this process and of its children. It is stored nowhere."""
        fixed = {self.process_key: _OWN_SERVICES}
        if config.admin_key is not None:
            fixed[config.admin_key.get_secret_value()] = _ADMIN
        sources: list[CallerSource] = [FixedKeys(fixed), self.key_callers]
        if config.oidc_issuer is not None and config.oidc_audience is not None:
            settings = OidcSettings(
                config.oidc_issuer,
                config.oidc_audience,
                config.oidc_scopes_claim,
                tenant_claim=config.oidc_tenant_claim,
                is_bound=config.oidc_bound,
            )
            sources.append(OidcCallers(settings))
        self._bearers = BearerTokens(sources)
        name = config.authenticator
        self._custom = None if name is None else load_authenticator(name)

    async def authenticate(self, scope: Scope) -> Caller:
        """See `Authenticator`.

        Raises:
            PermissionDeniedError: The request names another owner, and the caller may not act for it.
        """
        caller = None if self._custom is None else await caller_by(self._custom, scope)
        return acting_for(caller or await self._bearers.authenticate(scope), scope)
