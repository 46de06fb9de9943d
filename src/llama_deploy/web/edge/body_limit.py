"""The layer that bounds the bodies of requests: each one, and all of them together."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.errors import LlamaDeployError, PayloadTooLargeError, ServerBusyError
from llama_deploy.web.edge.body_budget import (
    RELEASE_BODY,
    SMALL_BODY_BYTES,
    WAIT_SECONDS,
    BodyBudget,
    ReceivedBody,
)
from llama_deploy.web.responses import problem_response

DEFAULT_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_MAX_DIGITS: Final = 18


class BodyLimit:
    """Answers 413 to a request whose body is too large, declared or streamed, and 503 if there is no room.

    Args:
        app: The next layer.
        max_body_bytes: The most bytes of a request body.
        max_total_body_bytes: The most bytes of all bodies that are in memory at the same time.
        body_wait_seconds: How long a body waits for room.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_total_body_bytes: int,
        body_wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._app = app
        self._limit = max_body_bytes
        self._budget = BodyBudget(max_total_body_bytes, wait_seconds=body_wait_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_streamed = False
        for name, value in scope["headers"]:
            if name == b"content-length":
                # The server reads no more bytes than were declared.
                if len(value) > _MAX_DIGITS or (size := int(value)) > self._limit:
                    await problem_response(_too_large(self._limit))(scope, receive, send)
                elif size > SMALL_BODY_BYTES:
                    await self._count(scope, receive, send)
                else:
                    await self._app(scope, receive, send)
                return
            is_streamed = is_streamed or name == b"transfer-encoding"
        if is_streamed:
            await self._count(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = self._budget.body(receive)
        counted = _CountedBody(scope, body, send, self._limit)
        scope[RELEASE_BODY] = body.close
        try:
            await self._app(scope, counted.receive, counted.send)
        except LlamaDeployError as exc:
            if exc is not counted.error:
                raise
            await counted.answer_error()
        finally:
            body.close()


class _CountedBody:
    """A request whose body is large, or of unknown length."""

    def __init__(self, scope: Scope, body: ReceivedBody, send: Send, limit: int) -> None:
        self._scope = scope
        self._body = body
        self._send = send
        self._limit = limit
        self.error: LlamaDeployError | None = None
        """Why the body was not received."""
        self._is_answered = False

    async def receive(self) -> Message:
        """Return the next part of the body.

        Raises:
            PayloadTooLargeError: The body is larger than the limit.
            ServerBusyError: There was no room for it.
        """
        try:
            message = await self._body.receive()
        except ServerBusyError as exc:
            self.error = exc
            raise
        if self._body.held_bytes > self._limit:
            self.error = _too_large(self._limit)
            raise self.error
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, or the error instead of all that the application makes of it."""
        if self.error is None:
            await self._send(message)
        else:
            await self.answer_error()

    async def answer_error(self) -> None:
        """Answer why the body was not received, once."""
        if self.error is not None and not self._is_answered:
            self._is_answered = True
            await problem_response(self.error)(self._scope, self._body.receive, self._send)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the request body is larger than {limit} bytes; send less, or raise max_body_bytes",
        limit_bytes=limit,
    )
