"""The layer that says who makes a request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.errors import (
    AuthenticationError,
    InvalidRequestError,
    LlamaDeployError,
    PermissionDeniedError,
)
from llama_deploy.health import LIVE_PATH
from llama_deploy.types.callers import ANONYMOUS, NOBODY, Caller
from llama_deploy.types.owners import OWNER_HEADERS
from llama_deploy.web.edge.access_table import AccessTable
from llama_deploy.web.edge.caller_state import CALLER
from llama_deploy.web.responses import problem_response

RECHECK_SECONDS: Final = 5.0
"""After how many seconds the caller of a stream is asked for again, before its next part or keep-alive."""


OnDenied: TypeAlias = Callable[[Scope, Caller | None, int], None]
"""Learns that a request was refused: by whom it was sent, if that is known, and with which status."""

_DENIED: Final = (401, 403)
_DOCUMENTS: Final = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"})
"""What the framework adds to the routes of an API. Any key may read it, but not a token for one resource."""


class Authenticator(Protocol):
    """Identifies callers."""

    async def authenticate(self, scope: Scope) -> Caller:
        """Return who makes the request of an ASGI scope.

        Raises:
            LlamaDeployError: The request is refused, with the status of this error.
        """
        ...


class Anonymous:
    """The default authenticator: all callers are anonymous, with all rights in the default tenant."""

    async def authenticate(self, scope: Scope) -> Caller:
        """See `Authenticator`.

        Raises:
            InvalidRequestError: The request names another owner.
        """
        for name, _ in scope["headers"]:
            if name in OWNER_HEADERS:
                raise InvalidRequestError(
                    f"this server has no authentication, so all requests are about the default tenant;"
                    f" {name.decode()} has no effect: leave it out, or set authentication to `keys`"
                )
        return ANONYMOUS


class Authentication:
    """Stores the caller as `scope["state"]["caller"]`, or answers why the request is refused.

    A request for an open route is never refused. Without a valid key its caller is `NOBODY`, who learns no
    reasons from a probe. The route itself checks the caller again. The probe whether the process lives
    identifies nobody, because it must not wait for anything.

    Args:
        app: The next layer.
        authenticator: Identifies the callers.
        table: Says which routes are open.
        on_denied: Learns of requests that are refused with 401 or 403, but not while callers are anonymous.
            None: nobody does.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        table: AccessTable,
        on_denied: OnDenied | None = None,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._on_denied = on_denied
        self._open = tuple(path.partition("{")[0] for (_, path), needed in table.items() if needed.is_open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            lives = scope["path"] == LIVE_PATH
            caller = NOBODY if lives else await self._authenticator.authenticate(scope)
            if caller.resource is not None and scope["path"] in _DOCUMENTS:
                raise PermissionDeniedError(
                    f"{scope['path']} is not for this token, which is for one {caller.resource.kind} only;"
                    " use a key"
                )
        except LlamaDeployError as exc:
            if not scope["path"].startswith(self._open):
                if self._on_denied is not None and isinstance(
                    exc, AuthenticationError | PermissionDeniedError
                ):
                    status = 401 if isinstance(exc, AuthenticationError) else 403
                    self._on_denied(scope, None, status)
                await problem_response(exc)(scope, receive, send)
                return
            caller = NOBODY
        scope.setdefault("state", {})[CALLER] = caller
        if isinstance(self._authenticator, Anonymous) or caller is NOBODY:
            await self._app(scope, receive, send)
            return
        answer = _CheckedAnswer(scope, send, self._authenticator, caller, self._on_denied)
        try:
            await self._app(scope, receive, answer.send)
        except _CallerEndedError:
            await send({"type": "http.response.body", "body": b""})
        except BaseExceptionGroup as group:
            if group.split(_CallerEndedError)[1] is not None:
                raise
            await send({"type": "http.response.body", "body": b""})


class _CallerEndedError(Exception):
    """The key was revoked or has expired while the answer was sent."""


class _CheckedAnswer:
    """Passes an answer on while its caller is valid, which matters for streams only.

    It also sees whether the route has refused the caller.
    """

    def __init__(
        self,
        scope: Scope,
        send: Send,
        authenticator: Authenticator,
        caller: Caller,
        on_denied: OnDenied | None,
    ) -> None:
        self._scope = scope
        self._send = send
        self._authenticator = authenticator
        self._caller = caller
        self._on_denied = on_denied
        self._checked_at = time.monotonic()

    async def send(self, message: Message) -> None:
        """Send a part of the answer.

        Raises:
            _CallerEndedError: The caller is not valid any more.
        """
        if self._on_denied is not None and message.get("status") in _DENIED:
            self._on_denied(self._scope, self._caller, message["status"])
        now = time.monotonic()
        if message.get("more_body") and now - self._checked_at >= RECHECK_SECONDS:
            self._checked_at = now
            try:
                await self._authenticator.authenticate(self._scope)
            except AuthenticationError:
                raise _CallerEndedError from None
            except LlamaDeployError:
                pass  # it cannot be said now
        await self._send(message)
