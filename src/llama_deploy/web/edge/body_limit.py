"""The layer that refuses request bodies above a limit."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.errors import PayloadTooLargeError
from llama_deploy.web.responses import problem_response

DEFAULT_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_MAX_DIGITS: Final = 18


class BodyLimit:
    """Answers 413 to a request whose body is too large, declared or streamed.

    Args:
        app: The next layer.
        max_body_bytes: The most bytes of a request body.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        for name, value in scope["headers"]:
            if name == b"content-length":
                # The server reads no more bytes than were declared, so there is nothing to count.
                if len(value) > _MAX_DIGITS or int(value) > self._limit:
                    await problem_response(_too_large(self._limit))(scope, receive, send)
                else:
                    await self._app(scope, receive, send)
                return
        counted = _CountedBody(scope, receive, send, self._limit)
        await self._app(scope, counted.receive, counted.send)


class _CountedBody:
    """A request whose body has no declared length."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._received = 0
        self._is_answered = False

    async def receive(self) -> Message:
        """Return the next part of the body.

        Raises:
            PayloadTooLargeError: The body is larger than the limit.
        """
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._limit:
            raise _too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or 413 instead of all that the application makes of the error."""
        if self._received <= self._limit:
            await self._send(message)
        elif not self._is_answered:
            self._is_answered = True
            await problem_response(_too_large(self._limit))(self._scope, self._receive, self._send)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the request body is larger than {limit} bytes; send less, or raise max_body_bytes",
        limit_bytes=limit,
    )
