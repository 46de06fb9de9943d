# Generated from client/aio/server_api.py by `make sync-client`; do not edit.
"""Calls to one server: requests, retries and streams."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from pydantic import TypeAdapter

from llama_deploy.client.deadline import Deadline, pause_after
from llama_deploy.client.event_streams import LineStream
from llama_deploy.client.settings import ClientSettings
from llama_deploy.client.sync.waiting import Sleep, sleep
from llama_deploy.errors import OverloadedError, UnavailableError
from llama_deploy.web.answers import read_answer
from llama_deploy.web.http_exchange import HttpAnswer, HttpRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANYTHING: Final = TypeAdapter[Any](Any).validate_python
"""The type of a response that nobody reads, or that may be any JSON."""


class Connection(Protocol):
    """What is needed of an `SyncHttpConnection`."""

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Send a request and return the response."""

    def stream(self, request: HttpRequest) -> AbstractContextManager[Generator[bytes]]:
        """Send a request and yield the lines of the response."""

    def close(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class ServerApi:
    """Calls one server."""

    connection: Connection
    """The connection to the server. `close` closes it."""
    settings: ClientSettings
    sleep: Sleep = sleep
    """Waits for the given seconds."""

    def deadline(self, timeout: float | None = None) -> Deadline:
        """Return the deadline of a call that starts now; None is the client's `timeout`."""
        return Deadline(self.settings.timeout if timeout is None else timeout)

    def answer(self, request: HttpRequest) -> HttpAnswer:
        """Send a request once and return the response.

        Raises:
            LlamaDeployError: The error that the server returned.
            UnavailableError: The server did not respond.
        """
        return self.connection.answer(request)

    def call(self, request: HttpRequest, returns: Callable[[Any], T]) -> T:
        """Send a request once and return the decoded response.

        Raises:
            LlamaDeployError: The error that the server returned.
            InternalServerError: The response does not have the expected form.
            UnavailableError: The server did not respond.
        """
        answer = self.connection.answer(request)
        return read_answer(answer.value, returns, source=request.path)

    def get(self, path: str, returns: Callable[[Any], T], **params: str | int) -> T:
        """Like `call`, with a GET request."""
        return self.call(HttpRequest("GET", path, params=params), returns)

    def post(self, path: str, returns: Callable[[Any], T], json: Any = None, **params: str) -> T:
        """Like `call`, with a POST request."""
        return self.call(HttpRequest("POST", path, json=json, params=params), returns)

    def call_until(
        self, deadline: Deadline, build: Callable[[], HttpRequest], returns: Callable[[Any], T]
    ) -> T:
        """Like `call`, but retry until the deadline while the server is unavailable or overloaded.

        Args:
            deadline: When to give up and raise the last error.
            build: Returns the request for each attempt. The server must treat all of them as one request.
            returns: Returns the response as the expected type; see `read_answer`.
        """
        failures = 0
        while True:
            try:
                return self.call(build(), returns)
            except (UnavailableError, OverloadedError) as exc:
                left = deadline.remaining()
                if left <= 0:
                    raise
                failures += 1
                logger.log(
                    logging.WARNING if failures == 1 else logging.DEBUG,
                    "%s; retrying%s",
                    exc,
                    "" if math.isinf(left) else f" for up to {left:.0f} s",
                    extra={"action": "retry"},
                )
                seconds = min(pause_after(failures, exc), left)
            self.sleep(seconds)

    def read(self, stream: LineStream[T]) -> Generator[T]:
        """Yield the items of a stream as they arrive."""
        while True:
            error: UnavailableError | None = None
            try:
                with self.connection.stream(stream.request()) as lines, closing(lines):
                    for line in lines:
                        item = stream.feed(line)
                        if item is not None:
                            yield item
            except UnavailableError as exc:
                error = exc
            seconds = stream.interrupted(error)
            if seconds is None:
                return
            self.sleep(seconds)

    def close(self) -> None:
        """Close the connection. Idempotent; a later call opens it again."""
        self.connection.close()
