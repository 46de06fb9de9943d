"""What precedes and follows the body of a request is bounded, like the body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import repeat
from typing import Final

import pytest

from llama_deploy.web.http_protocol import MAX_HEAD_BYTES
from llama_deploy.web.http_server import HttpServer
from tests.integration.test_half_open import Echo

MUCH: Final = 30_000_000
PIECE: Final = 50_000

LINE: Final = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED: Final = LINE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"

ENDLESS: Final = {
    "a header": (LINE + b"Cookie: ", b"x" * PIECE),
    "the name of a header": (LINE, b"x" * PIECE),
    "many headers": (LINE, b"Cookie: a\r\n" * (PIECE // 11)),
    "many empty headers": (LINE, b"a:\r\n" * (PIECE // 4)),
    "the address": (b"GET /", b"x" * PIECE),
    "the query": (b"GET /?", b"x" * PIECE),
    "trailers": (CHUNKED, b"Cookie: a\r\n" * (PIECE // 11)),
    "a trailer": (CHUNKED + b"Cookie: ", b"x" * PIECE),
}


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async with await HttpServer.start(Echo(), host="127.0.0.1", port=0) as server:
        yield server


async def exchange(server: HttpServer, pieces: Iterator[bytes]) -> tuple[bytes, int]:
    """Send pieces until the server closes the connection. Return its answers, and how much was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    sent = 0
    with suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            if reader.at_eof():
                break
    answers = bytearray()
    with suppress(ConnectionError):
        while part := await reader.read(PIECE):
            answers += part
    writer.close()
    return bytes(answers), sent


@pytest.mark.parametrize("place", ENDLESS)
async def test_a_request_head_without_end_is_refused(server: HttpServer, place: str) -> None:
    start, more = ENDLESS[place]
    answers, sent = await exchange(server, iter([start, *repeat(more, MUCH // len(more))]))
    # The kernel buffers some megabytes, and may drop the answer when it resets the connection.
    assert sent < MUCH / 2
    assert not answers or b"431" in answers or b"200" in answers


async def test_the_answer_names_the_limit(server: HttpServer) -> None:
    answers, _ = await exchange(server, iter([LINE + b"Cookie: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"]))
    assert answers.startswith(b"HTTP/1.1 431 ")
    head, _, body = answers.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    problem = json.loads(body)
    assert problem["status"] == 431
    assert str(MAX_HEAD_BYTES) in problem["detail"]


async def test_requests_below_the_limit_are_served(server: HttpServer) -> None:
    body = b"x" * 1_000_000
    large = (
        LINE + b"Cookie: " + b"x" * (MAX_HEAD_BYTES - 1000) + b"\r\nContent-Length: 1000000\r\n\r\n" + body
    )
    closing = LINE + b"Connection: close\r\nContent-Length: 0\r\n\r\n"
    answers, _ = await exchange(server, iter([large + large + closing]))
    assert answers.count(b"HTTP/1.1 200 ") == 3
