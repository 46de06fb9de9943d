"""Carries out operations and streams in the thread that calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TypeVar

from llama_deploy.client.event_streams import LineStream
from llama_deploy.client.operation import Operation, Pause
from llama_deploy.client.settings import ClientSettings
from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.web.http_connection import HttpAnswer, HttpRequest, SyncHttpConnection

T = TypeVar("T")


class Driver:
    """Does the I/O of one server's operations.

    Args:
        connection: Leads to the server; the driver closes it.
        settings: The client's settings.
    """

    def __init__(self, connection: SyncHttpConnection, settings: ClientSettings) -> None:
        self._connection = connection
        self.settings = settings

    def run(self, operation: Operation[T]) -> T:
        """Carry out an operation and return its result; what it raises is raised here."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = self._perform(step)
                except LlamaDeployError as exc:
                    step = operation.throw(exc)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _perform(self, step: HttpRequest | Pause) -> HttpAnswer | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        return self._connection.answer(step)

    def read(self, stream: LineStream[T]) -> Iterator[T]:
        """Yield the items of a stream as they come."""
        while True:
            error: UnavailableError | None = None
            try:
                with self._connection.stream(stream.request()) as lines, contextlib.closing(lines):
                    for line in lines:
                        item = stream.feed(line)
                        if item is not None:
                            yield item
            except UnavailableError as exc:
                error = exc
            pause = stream.interrupted(error)
            if pause is None:
                return
            self._perform(pause)

    def close(self) -> None:
        """Close the connection. Idempotent; a later operation opens it again."""
        self._connection.close()
