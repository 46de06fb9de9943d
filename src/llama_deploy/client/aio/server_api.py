"""Calls to one server: requests, retries and streams."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from pydantic import TypeAdapter

from llama_deploy.client.aio.waiting import Sleep, sleep
from llama_deploy.client.deadline import Deadline, answer_timeout, pause_after
from llama_deploy.client.event_streams import LineStream
from llama_deploy.client.server_outage import ServerOutage
from llama_deploy.client.settings import ClientSettings
from llama_deploy.errors import LlamaDeployError, OverloadedError, UnavailableError
from llama_deploy.interceptors import Hooks, SubmitCall
from llama_deploy.running_task import TaskInfo, running_task
from llama_deploy.web.answers import read_answer
from llama_deploy.web.http_exchange import HttpAnswer, HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANYTHING: Final = TypeAdapter[Any](Any).validate_python
"""The type of a response that nobody reads, or that may be any JSON."""


class Connection(Protocol):
    """What is needed of an `HttpConnection`."""

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Send a request and return the response."""

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[AsyncGenerator[bytes]]:
        """Send a request and yield the lines of the response."""

    async def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class ServerApi:
    """Calls one server."""

    connection: Connection
    """The connection to the server. `close` closes it."""
    settings: ClientSettings
    outage: ServerOutage
    """Logs when the server does not answer, once for all calls."""
    sleep: Sleep = sleep
    """Waits for the given seconds."""
    on_submit: Hooks[SubmitCall] = ()
    """The hooks around the submission of a task."""
    parent: Callable[[], TaskInfo | None] = running_task.get
    """Returns the task that is the parent of those that are submitted."""

    def deadline(self, timeout: float | None = None) -> Deadline:
        """Return the deadline of a call that starts now; None is the client's `timeout`."""
        return Deadline(self.settings.timeout if timeout is None else timeout)

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Send a request once and return the response.

        Raises:
            LlamaDeployError: The error that the server returned.
            UnavailableError: The server did not respond.
        """
        return await self.connection.answer(request)

    async def call(self, request: HttpRequest, returns: Callable[[Any], T]) -> T:
        """Send a request once and return the decoded response.

        Raises:
            LlamaDeployError: The error that the server returned.
            InternalServerError: The response does not have the expected form.
            UnavailableError: The server did not respond.
        """
        answer = await self.connection.answer(request)
        return read_answer(answer.value, returns, source=request.path)

    async def get(self, path: str, returns: Callable[[Any], T], **params: str | int | list[str]) -> T:
        """Like `call_until`, with a GET request and the client's timeout."""
        answer = await self.answer_again(HttpRequest("GET", path, params=params))
        return read_answer(answer.value, returns, source=path)

    async def post(self, path: str, returns: Callable[[Any], T], json: Any = None, **params: str) -> T:
        """Like `call`, with a POST request."""
        return await self.call(HttpRequest("POST", path, json=json, params=params), returns)

    async def post_again(self, path: str, returns: Callable[[Any], T], json: Any = None, **params: str) -> T:
        """Like `get`, with a POST request that does the same if it arrives twice."""
        answer = await self.answer_again(HttpRequest("POST", path, json=json, params=params))
        return read_answer(answer.value, returns, source=path)

    async def answer_again(self, request: HttpRequest) -> HttpAnswer:
        """Like `answer`, but retry until the client's timeout, as `call_until` does."""
        deadline = self.deadline()

        def build() -> HttpRequest:
            return replace(request, timeout=answer_timeout(deadline))

        return (await self._answer_until(deadline, build))[1]

    async def call_until(
        self, deadline: Deadline, build: Callable[[], HttpRequest], returns: Callable[[Any], T]
    ) -> T:
        """Like `call`, but retry until the deadline while the server is unavailable or overloaded.

        Args:
            deadline: When to give up and raise the last error.
            build: Returns the request for each attempt. The server must treat all of them as one request.
            returns: Returns the response as the expected type; see `read_answer`.
        """
        request, answer = await self._answer_until(deadline, build)
        return read_answer(answer.value, returns, source=request.path)

    async def _answer_until(
        self, deadline: Deadline, build: Callable[[], HttpRequest]
    ) -> tuple[HttpRequest, HttpAnswer]:
        failures = 0
        while True:
            made_at = self.outage.now()
            request = build()
            try:
                answer = await self.connection.answer(request)
            except (UnavailableError, OverloadedError) as exc:
                left = deadline.remaining()
                if left <= 0:
                    raise
                failures += 1
                self.outage.failed(exc, made_at=made_at)
                seconds = min(pause_after(failures, exc), left)
                logger.debug("%s; next try in %g s", exc, seconds, extra={"action": "retry"})
            except LlamaDeployError:
                self.outage.answered()
                raise
            else:
                self.outage.answered()
                return request, answer
            await self.sleep(seconds)

    async def read(self, stream: LineStream[T]) -> AsyncGenerator[T]:
        """Yield the items of a stream as they arrive."""
        while True:
            error: UnavailableError | None = None
            made_at = self.outage.now()
            try:
                async with self.connection.stream(stream.request()) as lines, aclosing(lines):
                    self.outage.answered()
                    async for line in lines:
                        item = stream.feed(line)
                        if item is not None:
                            yield item
            except UnavailableError as exc:
                error = exc
            seconds = stream.interrupted(error)
            if seconds is None:
                return
            if error is not None:
                self.outage.failed(error, made_at=made_at)
            await self.sleep(seconds)

    async def close(self) -> None:
        """Close the connection. Idempotent; a later call opens it again."""
        await self.connection.close()
