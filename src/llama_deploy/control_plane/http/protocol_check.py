"""Refusing instances of another major version of the protocol."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import ProtocolVersionError
from llama_deploy.types.instance_protocol import PROTOCOL_HEADER, check_protocol
from llama_deploy.web.responses import problem_response

_HEADER: Final = PROTOCOL_HEADER.lower().encode()


class ProtocolCheck:
    """An ASGI layer that refuses the requests of instances with another major version of the protocol.

    Instances name their version in a header of each request. Requests without it come from other clients.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        for name, value in scope["headers"]:
            if name == _HEADER:
                try:
                    check_protocol(value.decode("latin-1"), peer="the instance")
                except ProtocolVersionError as exc:
                    await problem_response(exc)(scope, receive, send)
                    return
        await self._app(scope, receive, send)
