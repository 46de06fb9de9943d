"""Callers who send a key as `Authorization: Bearer ...` (RFC 6750)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from pydantic import SecretStr
from starlette.types import Scope

from llama_deploy.errors import AuthenticationError, UnavailableError
from llama_deploy.types.callers import ALL_SCOPES, Caller
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.web.edge.access import NO_KEY
from llama_deploy.web.edge.authentication import Anonymous, Authenticator
from llama_deploy.web.edge.failure_limit import FailureLimit, RefusedKeys

logger = logging.getLogger(__name__)

TOKEN_PREFIX: Final = "llamatoken_"  # noqa: S105 - no secret
"""How the tokens for one resource begin. Only they may be sent in a query, where browsers have no header."""

_BEARER: Final = re.compile(rb"bearer +([\x21-\x7e]{1,8192}) *", re.IGNORECASE)
_TOKEN: Final = re.compile(rb"(?:^|&)token=(%s[A-Za-z0-9_.-]{1,8192})(?=&|$)" % TOKEN_PREFIX.encode())
_INVALID: Final = (
    "the key is not valid: it is unknown, malformed, expired or revoked; use another key, or ask an"
    " administrator of this server for one"
)


class CallerSource(Protocol):
    """Knows the callers of some keys."""

    async def caller_of(self, key: str) -> Caller | None:
        """Return who has this key, None if the key is not valid.

        Raises:
            UnavailableError: The key cannot be looked up now.
        """
        ...

    def has_seen(self, key: str) -> bool:
        """Whether the key was valid shortly before, or is without a look-up: then it is not limited."""
        ...


class FixedKeys:
    """Keys that are known when a server starts. Only their hashes are kept.

    Args:
        callers: The callers by their keys.
    """

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        self._callers = [(_digest(key), caller) for key, caller in callers.items()]

    async def caller_of(self, key: str) -> Caller | None:
        """See `CallerSource`."""
        return self._find(key)

    def has_seen(self, key: str) -> bool:
        """See `CallerSource`. Nothing is looked up, so valid keys are never limited."""
        return self._find(key) is not None

    def _find(self, key: str) -> Caller | None:
        digest = _digest(key)
        return next((caller for own, caller in self._callers if hmac.compare_digest(own, digest)), None)


class BearerTokens:
    """Identifies callers by the keys that they send.

    Args:
        sources: Are asked for the caller of a key, in this order.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self, sources: Sequence[CallerSource], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sources = sources
        self._failures = FailureLimit(clock)
        self._refused = RefusedKeys(clock)
        self._looking: set[bytes] = set()
        """The hashes of the keys that are being looked up and have reserved a failure."""

    async def authenticate(self, scope: Scope) -> Caller:
        """See `Authenticator`. An unknown, a malformed, an expired and a revoked key get the same answer.

        Raises:
            AuthenticationError: There is no valid key.
            OverloadedError: The address of the client has sent too many keys that are not valid.
            UnavailableError: The key cannot be looked up now.
        """
        key = _key_in(scope)
        digest = _digest(key)
        if self._refused.has(digest):
            raise AuthenticationError(_INVALID)
        client = scope.get("client")
        address = client[0] if client else ""
        # One key counts once, however many requests with it come at the same time.
        is_first = digest not in self._looking
        if is_first and not any(source.has_seen(key) for source in self._sources):
            caller = await self._find_limited(key, digest, address)
        else:
            caller = await self._find(key)
            if caller is None and is_first:
                self._failures.note(address)
        if caller is None:
            self._refused.add(digest)
            raise AuthenticationError(_INVALID)
        return caller

    async def _find_limited(self, key: str, digest: bytes, address: str) -> Caller | None:
        self._failures.reserve(address)
        self._looking.add(digest)
        has_failed = False
        try:
            caller = await self._find(key)
            has_failed = caller is None
        finally:
            self._looking.discard(digest)
            if not has_failed:
                self._failures.take_back(address)
        return caller

    async def _find(self, key: str) -> Caller | None:
        """Return the caller of a key. One on which a source fails is not valid."""
        try:
            for source in self._sources:
                if (caller := await source.caller_of(key)) is not None:
                    return caller
        except UnavailableError:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever others send must not be a fault of the server
            logger.warning("a key cannot be read: %s", type(exc).__name__, extra={"action": "key_unreadable"})
        return None


def shared_key(key: SecretStr | None) -> Authenticator:
    """Return the authenticator of a server with one key, which has all rights. None: it has no key."""
    if key is None:
        return Anonymous()
    caller = Caller(subject="shared key", tenant=DEFAULT_TENANT, scopes=frozenset({ALL_SCOPES}))
    return BearerTokens([FixedKeys({key.get_secret_value(): caller})])


def _key_in(scope: Scope) -> str:
    """Return the key in the header of a request, or the token in its query.

    Raises:
        AuthenticationError: There is none.
    """
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if headers:
        match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None:
            raise AuthenticationError(_INVALID)
        return match[1].decode("ascii")
    query: bytes = scope.get("query_string", b"")
    tokens = _TOKEN.findall(query)
    if len(tokens) == 1:
        return str(tokens[0].decode("ascii"))
    raise AuthenticationError(NO_KEY)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
