"""Carries out operations and streams with asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar

from llama_deploy.client.event_streams import LineStream
from llama_deploy.client.operation import Operation, Pause
from llama_deploy.client.settings import ClientSettings
from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.web.http_connection import HttpAnswer, HttpConnection, HttpRequest

T = TypeVar("T")


class Driver:
    """Does the I/O of one server's operations.

    Args:
        connection: Leads to the server; the driver closes it.
        settings: The client's settings.
    """

    def __init__(self, connection: HttpConnection, settings: ClientSettings) -> None:
        self._connection = connection
        self.settings = settings

    async def run(self, operation: Operation[T]) -> T:
        """Carry out an operation and return its result; what it raises is raised here."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = await self._perform(step)
                except LlamaDeployError as exc:
                    step = operation.throw(exc)
                else:
                    step = operation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _perform(self, step: HttpRequest | Pause) -> HttpAnswer | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._connection.answer(step)

    async def read(self, stream: LineStream[T]) -> AsyncGenerator[T]:
        """Yield the items of a stream as they come."""
        while True:
            error: UnavailableError | None = None
            try:
                async with self._connection.stream(stream.request()) as lines, contextlib.aclosing(lines):
                    async for line in lines:
                        item = stream.feed(line)
                        if item is not None:
                            yield item
            except UnavailableError as exc:
                error = exc
            pause = stream.interrupted(error)
            if pause is None:
                return
            await self._perform(pause)

    async def close(self) -> None:
        """Close the connection. Idempotent; a later operation opens it again."""
        await self._connection.close()
