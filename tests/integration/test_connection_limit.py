"""A server has a limited number of connections; it refuses further ones, says so once, and recovers."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest

from llama_deploy.testing.conditions import eventually
from llama_deploy.web.http_server import HttpServer
from tests.integration.test_half_open import Echo

LIMIT: Final = 5
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Connection:
    """A connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, server: HttpServer) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    async def is_served(self) -> bool:
        """Whether a request gets an answer of the application."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            self._writer.write(REQUEST)
            await self._writer.drain()
            answer = await self._reader.readuntil(b"\r\n\r\n0")
            return answer.startswith(b"HTTP/1.1 200")
        return False

    async def refusal(self) -> bytes:
        """Return what the server says to a connection that sends nothing."""
        async with asyncio.timeout(10):
            return await self._reader.read()

    def close(self) -> None:
        self._writer.transport.abort()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def start(stack: AsyncExitStack, max_connections: int) -> HttpServer:
    server = await HttpServer.start(Echo(), host="127.0.0.1", port=0, max_connections=max_connections)
    return await stack.enter_async_context(server)


async def connect(stack: AsyncExitStack, server: HttpServer) -> Connection:
    connection = await Connection.open(server)
    stack.callback(connection.close)
    return connection


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        getattr(record, "action", "")
        for record in caplog.records
        if record.name == "llama_deploy.web.connection_limit"
    ]


async def test_further_connections_get_503_and_are_told_once(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = await start(stack, LIMIT)
    kept = [await connect(stack, server) for _ in range(LIMIT)]
    for connection in kept:
        assert await connection.is_served()
    for _ in range(10):
        refusal = await (await connect(stack, server)).refusal()
        assert refusal.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1\r\n" in refusal
    assert await kept[0].is_served()  # those that are open are not affected
    assert told(caplog) == ["connections_refused"]
    assert "max_connections" in caplog.text

    kept[1].close()
    await eventually(lambda: len(server.connections()) < LIMIT)
    assert await (await connect(stack, server)).is_served()
    assert told(caplog) == ["connections_refused", "connections_accepted"]


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Let this process open few files only."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/dev/fd"))) + 300  # noqa: PTH208 - a list of numbers
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_connections_leave_descriptors_for_the_rest_of_the_process(
    stack: AsyncExitStack, few_descriptors: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = await start(stack, 10_000)
    connections: list[Connection] = []
    for _ in range(few_descriptors):
        connections.append(await connect(stack, server))
        if not await connections[-1].is_served():
            break
    assert told(caplog) == ["connections_refused"]
    assert "ulimit -n" in caplog.text
    with open(os.devnull), open(os.devnull):  # noqa: ASYNC230, PTH123 - there are descriptors for others
        pass
    for connection in connections:
        connection.close()
    await eventually(lambda: not server.connections())
    assert await (await connect(stack, server)).is_served()
    assert told(caplog) == ["connections_refused", "connections_accepted"]
