"""Callers who send a token of an OpenID Connect issuer: a JWT, signed with one of its published keys."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llama_deploy.errors import ConfigError, LlamaDeployError, UnavailableError
from llama_deploy.types.callers import AccessScope, Caller
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.owners import is_subject, is_tenant
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.loopback import is_loopback

if TYPE_CHECKING:
    from jwt import PyJWK

logger = logging.getLogger(__name__)

SKEW_SECONDS: Final = 60
"""How far the clocks of issuer and server may differ."""
KNOWN_SECONDS: Final = 60.0
"""How long a token that was verified is not verified again."""
REFETCH_SECONDS: Final = 10.0
"""How long after the end of a fetch an unknown key does not cause another one."""
KEEP_SECONDS: Final = 3600.0
"""After how many seconds the keys are fetched again, so that removed ones are not accepted for longer."""
_FETCH_SECONDS: Final = 10.0
_MAX_KNOWN: Final = 10_000
_ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Only those with a public key: with others, who can verify a token can make one."""
_SCOPES: Final = frozenset(AccessScope)


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """Which tokens are accepted.

    Raises:
        ConfigError: The issuer is not a URL that can be trusted.
    """

    issuer: str
    """As in the claim `iss`. Its keys are found at `/.well-known/openid-configuration` below it."""
    audience: str
    """As in the claim `aud`."""
    scopes_claim: str = "scope"
    """The claim with the scopes: a text with spaces between them, or a list."""
    tenant_claim: str | None = None
    """The claim with the tenant; a token without it is refused. None: all work with the default tenant."""
    is_bound: bool = False
    """Whether each caller works only with what belongs to the claim `sub`."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.issuer)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ConfigError("oidc_issuer must begin with https://, because its keys are fetched from there")


class IssuerKeys:
    """The public keys of an issuer, which it may change at any time.

    Args:
        issuer: Its URL.
        clock: Returns seconds that only grow.
    """

    def __init__(self, issuer: str, *, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._clock = clock
        self._keys: Mapping[str | None, PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()

    async def find(self, key_id: str | None) -> PyJWK | None:
        """Return a key by its id. None: the issuer has no such key, or it was not asked again yet.

        Raises:
            UnavailableError: The issuer does not answer, and its keys are not known or too old.
        """
        if (key := self._find(key_id)) is not None and not self._is_old():
            return key
        async with self._lock:
            if self._may_fetch():
                try:
                    await self._fetch()
                finally:
                    # Not when it began: those who have waited meanwhile are not to ask once more each.
                    self._tried_at = self._clock()
        if self._is_old():
            raise UnavailableError(f"the keys of the issuer {self._issuer} cannot be fetched; retry")
        return self._find(key_id)

    def _find(self, key_id: str | None) -> PyJWK | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def _is_old(self) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at >= KEEP_SECONDS

    def _may_fetch(self) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at >= REFETCH_SECONDS

    async def _fetch(self) -> None:
        from jwt import PyJWKSet, PyJWTError  # noqa: PLC0415 - an optional package

        try:
            document = await _get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            found = PyJWKSet.from_dict(await _get(str(document["jwks_uri"])))
        except (LlamaDeployError, PyJWTError, KeyError, TypeError, AttributeError) as exc:
            logger.warning(
                "the keys of the issuer %s cannot be fetched: %s",
                self._issuer,
                exc,
                extra={"action": "issuer_keys"},
            )
            return
        self._keys = {key.key_id: key for key in found.keys if key.algorithm_name in _ALGORITHMS}
        self._fetched_at = self._clock()


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    until: float


class OidcCallers:
    """Knows the callers of the tokens of one issuer.

    Args:
        settings: Which tokens are accepted.
        clock: Returns seconds that only grow.

    Raises:
        ConfigError: The package that verifies tokens is not installed.
    """

    def __init__(self, settings: OidcSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import jwt  # noqa: PLC0415 - an optional package
        except ImportError as exc:
            raise ConfigError(
                "oidc_issuer needs a package that is not installed; in your clone of llama_deploy, run:"
                " pip install '.[oidc]'"
            ) from exc
        self._jwt = jwt
        self._settings = settings
        self._clock = clock
        self._keys = IssuerKeys(settings.issuer, clock=clock)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def caller_of(self, key: str) -> Caller | None:
        """Return who has this token. None: it is not one of the issuer, not for this audience, or not valid.

        Raises:
            UnavailableError: The keys of the issuer cannot be fetched.
        """
        digest = hashlib.sha256(key.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock() < known.until:
            return known.caller
        self._known.pop(digest, None)
        claims = await self._claims_of(key)
        if claims is None:
            return None
        tenant = self._tenant_in(claims)
        if tenant is None:
            return None
        caller = Caller(claims["sub"], tenant, self._scopes_in(claims), is_bound=self._settings.is_bound)
        now = time.time()  # compared with a number that may be too large for a float
        left = min(int(claims["exp"]) + SKEW_SECONDS, now + KNOWN_SECONDS) - now
        self._known[digest] = _Known(caller, self._clock() + left)
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return caller

    def has_seen(self, key: str) -> bool:
        """Whether the token was valid when it was last verified."""
        return hashlib.sha256(key.encode()).digest() in self._known

    async def _claims_of(self, token: str) -> dict[str, Any] | None:
        """Return the claims of a valid token."""
        try:
            header = self._jwt.get_unverified_header(token)
            # Others are not looked for: the issuer must not be asked for tokens that nobody has signed.
            unverified = self._jwt.decode(token, options={"verify_signature": False})
            if header.get("alg") not in _ALGORITHMS or unverified.get("iss") != self._settings.issuer:
                return None
            key = await self._keys.find(header.get("kid"))
            if key is None:
                return None
            claims: dict[str, Any] = self._jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except (self._jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return claims if is_subject(claims["sub"]) else None

    def _tenant_in(self, claims: Mapping[str, Any]) -> str | None:
        """Return the tenant in a claim. None: it is none."""
        name = self._settings.tenant_claim
        tenant = DEFAULT_TENANT if name is None else claims.get(name)
        return tenant if name is None or is_tenant(tenant) else None

    def _scopes_in(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """Return the scopes in a claim that are scopes of ours."""
        value = claims.get(self._settings.scopes_claim, ())
        named = value.split() if isinstance(value, str) else value
        return (
            frozenset(each for each in named if isinstance(each, str) and each in _SCOPES)
            if isinstance(named, list)
            else frozenset()
        )


async def _get(url: str) -> dict[str, Any]:
    """Return the JSON object at a URL of an issuer.

    Raises:
        LlamaDeployError: There is none.
        TypeError: It is something else.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigError(f"{parts.scheme}://{parts.hostname} is not https")
    connection = HttpConnection(f"{parts.scheme}://{parts.netloc}")
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        found = await connection.request(HttpRequest("GET", path, timeout=_FETCH_SECONDS))
    finally:
        await connection.close()
    if not isinstance(found, dict):
        raise TypeError(f"{parts.hostname} did not answer with a JSON object")
    return found
