"""The layer that says who makes a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import LlamaDeployError
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.web.responses import problem_response


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and what the caller may do."""

    subject: str
    """The name of the user, the program or the key."""
    tenant: str
    """Whose tasks and sessions the caller works with."""
    scopes: frozenset[str]
    """The rights; `*` is all of them."""


ANONYMOUS: Final = Caller(subject="anonymous", tenant=DEFAULT_TENANT, scopes=frozenset({"*"}))


class Authenticator(Protocol):
    """Identifies callers."""

    async def authenticate(self, scope: Scope) -> Caller:
        """Return who makes the request of an ASGI scope.

        Raises:
            LlamaDeployError: The request is refused, with the status of this error.
        """
        ...


class Anonymous:
    """The default authenticator: every caller is anonymous and has all rights."""

    async def authenticate(self, scope: Scope) -> Caller:  # noqa: ARG002 - the protocol's
        """See `Authenticator`."""
        return ANONYMOUS


class Authentication:
    """Stores the caller as `scope["state"]["caller"]`, or answers why the request is refused.

    Args:
        app: The next layer.
        authenticator: Identifies the callers.
    """

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            caller = await self._authenticator.authenticate(scope)
        except LlamaDeployError as exc:
            await problem_response(exc)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)
