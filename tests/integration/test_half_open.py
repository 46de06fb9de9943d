"""Connections whose other end has become silent: they are given up, and the others are served."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager

import pytest
from starlette.types import Receive, Scope, Send

from llama_deploy.errors import UnavailableError
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.sync_http_connection import SyncHttpConnection

PATIENCE = 1.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """Answers with the length of the body, and notes what it has received."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ends.append("disconnected")
                return
            length, more = length + len(message["body"]), message["more_body"]
        self.ends.append("complete")
        body = str(length).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[HttpServer]:
    async with await HttpServer.start(echo, host="127.0.0.1", port=0, patience=PATIENCE) as server:
        yield server


@pytest.fixture
async def streams(server: HttpServer) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    yield reader, writer
    writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(30):
        return await reader.read()


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: a\r\n"])
async def test_a_client_that_does_not_finish_its_headers_is_dropped(
    streams: Streams, echo: Echo, sent: bytes
) -> None:
    reader, writer = streams
    writer.write(sent)
    assert (await rest(reader)).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert echo.ends == []


async def test_a_client_that_does_not_finish_its_body_is_dropped(streams: Streams, echo: Echo) -> None:
    reader, writer = streams
    writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    assert await rest(reader) == b""
    assert echo.ends == ["disconnected"]


async def test_a_second_request_that_is_not_finished_is_dropped_too(streams: Streams) -> None:
    reader, writer = streams
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")
    answer = await rest(reader)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"HTTP/1.1 408 " in answer


async def test_a_slow_client_and_an_idle_connection_are_served(streams: Streams, echo: Echo) -> None:
    reader, writer = streams
    for _ in range(2):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\n")
        until = time.monotonic() + 2 * PATIENCE
        for _ in range(29):
            writer.write(b"a")
            await asyncio.sleep(2 * PATIENCE / 29)
        assert time.monotonic() >= until
        writer.write(b"a")
        answer = await reader.readuntil(b"\r\n\r\n30")
        assert answer.startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(2 * PATIENCE)  # between two requests a connection may be idle for longer
    assert echo.ends == ["complete", "complete"]


async def test_the_kernel_notices_a_client_that_is_gone(server: HttpServer, streams: Streams) -> None:
    _, writer = streams
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    (connection,) = server.connections()
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


@contextmanager
def silent_server() -> Iterator[str]:
    """Give the URL of a server that accepts and then says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_client_gives_up_a_silent_server() -> None:
    with silent_server() as url:
        connection = HttpConnection(ConnectionSettings(urls=[url], timeout=0.5))
        with pytest.raises(UnavailableError, match="no answer"):
            await connection.request(HttpRequest("GET", "/"))
        with pytest.raises(UnavailableError, match="no answer"):
            async with connection.stream(HttpRequest("GET", "/")) as lines:
                await anext(lines)
        await connection.close()


def test_a_client_without_a_loop_gives_up_a_silent_server() -> None:
    with silent_server() as url:
        connection = SyncHttpConnection(ConnectionSettings(urls=[url], timeout=0.5))
        with pytest.raises(UnavailableError, match="no answer"):
            connection.request(HttpRequest("GET", "/"))
        connection.close()
