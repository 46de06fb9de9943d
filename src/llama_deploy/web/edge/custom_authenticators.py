"""Authenticators of other packages."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import Final

from starlette.types import Scope

from llama_deploy.errors import ConfigError, InternalServerError, LlamaDeployError
from llama_deploy.printable import has_controls
from llama_deploy.types.callers import Caller
from llama_deploy.types.extras import described, load_entry_point
from llama_deploy.types.ids import MAX_ID_LENGTH
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.owners import is_subject, is_tenant

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP: Final = "llama_deploy.authenticators"
"""Packages declare their authenticators here: a name = a class or a function without arguments."""


class CustomAuthenticator(ABC):
    """Identifies callers in a way of its own, such as by a header that a proxy sets.

    A control plane asks it about each request, before it looks for a key. It is created once, outside of an
    event loop, and takes its settings from where it likes. The tenant of a caller is one that keys may have,
    or the default one, `""`. With `is_bound`, the caller works only with what belongs to its
    subject, which has at most 255 characters.

    Example:
        ```python
        class ByProxy(CustomAuthenticator):
            async def authenticate(self, scope):
                user = dict(scope["headers"]).get(b"x-user")
                return None if user is None else Caller(user.decode("latin-1"), "", frozenset({"tasks:read"}))
        ```
    """

    @abstractmethod
    async def authenticate(self, scope: Scope) -> Caller | None:
        """Return who makes a request. None: not known here; then the request needs a key.

        Args:
            scope: The ASGI scope. It must not be changed.

        Raises:
            AuthenticationError: The request is refused.
            UnavailableError: This cannot be said now.
        """


def load_authenticator(name: str) -> CustomAuthenticator:
    """Return the authenticator of this name that a package has installed.

    Raises:
        ConfigError: There is none, or its package is faulty.
    """
    known = {found.name: found for found in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"there is no authenticator {name!r}; installed are: {names}")
    make = load_entry_point(known[name], what="authenticator")
    made = make() if callable(make) else make
    if not isinstance(made, CustomAuthenticator):
        raise ConfigError(
            f"the authenticator {name!r}: {described(known[name])} returns no CustomAuthenticator"
        )
    return made


async def caller_by(authenticator: CustomAuthenticator, scope: Scope) -> Caller | None:
    """Return whom an authenticator takes for the caller of a request. None: nobody.

    Raises:
        LlamaDeployError: The authenticator has raised it.
        InternalServerError: It has failed, or returned something else than a caller.
    """
    try:
        caller = await authenticator.authenticate(scope)
    except LlamaDeployError:
        raise
    except Exception as exc:
        logger.exception("the authenticator failed", extra={"action": "authenticator_failed"})
        raise InternalServerError(f"the authenticator failed with {type(exc).__name__}") from exc
    if caller is None or _is_caller(caller):
        return caller
    raise InternalServerError(
        "the authenticator must return None, or a Caller whose subject is a text (with is_bound, of at most"
        f" {MAX_ID_LENGTH} characters), whose scopes are a frozenset of texts, and whose tenant is a name or"
        " empty"
    )


def _is_caller(found: object) -> bool:
    return (
        isinstance(found, Caller)
        and isinstance(found.subject, str)
        and found.subject != ""
        and (found.tenant == DEFAULT_TENANT or is_tenant(found.tenant))
        and not has_controls(found.subject)
        and (not found.is_bound or is_subject(found.subject))
        and isinstance(found.scopes, frozenset)  # a text has other texts in it
        and all(isinstance(scope, str) for scope in found.scopes)
    )
