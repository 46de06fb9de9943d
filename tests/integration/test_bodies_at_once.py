"""Many large bodies at the same time share a budget of memory, and all of them are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.testing.conditions import eventually
from llama_deploy.web.edge.body_budget import SMALL_BODY_BYTES, BodyBudget
from llama_deploy.web.edge.body_limit import BodyLimit
from llama_deploy.web.http_server import HttpServer
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.test_edge import send

KIB: Final = 1024
MAX_BODY: Final = 4096 * KIB
TOTAL: Final = 1024 * KIB
BUFFER: Final = 320 * KIB
"""What the server has read of a body before it can wait: one piece of a socket and one of uvicorn."""

Head = Callable[[int], bytes]


def declared(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size


def chunked(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size


END: Final[dict[Head, bytes]] = {declared: b"", chunked: b"\r\n0\r\n\r\n"}


class Keeper:
    """Keeps each body until it has answered; counts what it keeps."""

    def __init__(self) -> None:
        self.held = 0
        self.most = 0
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        length, more = 0, True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size = len(message["body"])
                length, more = length + size, message["more_body"]
                self.held += size
                self.most = max(self.most, self.held)
            await self.open.wait()
            body = str(length).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            self.held -= length


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


def limited(app: ASGIApp, *, wait_seconds: float = 30.0) -> ASGIApp:
    """Return the layer around an application, with the lifespan passed by."""
    layer = BodyLimit(
        app, max_body_bytes=MAX_BODY, max_total_body_bytes=TOTAL, body_wait_seconds=wait_seconds
    )

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "lifespan" else layer)(scope, receive, send)

    return serve


@pytest.fixture
async def server(keeper: Keeper) -> AsyncIterator[HttpServer]:
    async with await HttpServer.start(limited(keeper), host="127.0.0.1", port=0) as server:
        yield server


@pytest.fixture
async def hasty(keeper: Keeper) -> AsyncIterator[HttpServer]:
    """A server where bodies wait for 0.3 seconds only."""
    app = limited(keeper, wait_seconds=0.3)
    async with await HttpServer.start(app, host="127.0.0.1", port=0) as server:
        yield server


class Upload:
    """A request that is sent piece by piece."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def begin(cls, server: HttpServer, first: bytes) -> Upload:
        upload = cls(*await asyncio.open_connection("127.0.0.1", server.port))
        upload.writer.write(first)
        return upload

    async def answer(self) -> bytes:
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return head + await self.reader.readexactly(size)

    def close(self) -> None:
        self.writer.transport.abort()


async def post(server: HttpServer, size: int, head: Head = declared) -> bytes:
    upload = await Upload.begin(server, head(size))
    with suppress(ConnectionError):
        upload.writer.write(b"x" * size)
        upload.writer.write(END[head])
        await upload.writer.drain()
    answer = await upload.answer()
    upload.close()
    return answer


@pytest.mark.parametrize("head", END)
async def test_many_large_bodies_take_turns(server: HttpServer, keeper: Keeper, head: Head) -> None:
    answers = await asyncio.gather(*(post(server, MAX_BODY, head) for _ in range(10)))
    assert [answer.endswith(b"%d" % MAX_BODY) for answer in answers] == [True] * 10
    assert keeper.most < TOTAL + MAX_BODY + 10 * BUFFER  # of 40 MiB


@pytest.mark.parametrize("head", END)
async def test_a_body_that_is_larger_than_the_budget_passes(server: HttpServer, head: Head) -> None:
    assert (await post(server, 4 * TOTAL, head)).endswith(b"%d" % (4 * TOTAL))


async def test_bodies_that_fill_the_budget_with_their_beginnings_end_all(server: HttpServer) -> None:
    size = 900 * KIB
    begun = [await Upload.begin(server, declared(size)) for _ in range(12)]
    for upload in begun:
        upload.writer.write(b"x" * (200 * KIB))
    await asyncio.sleep(0)
    for upload in reversed(begun):
        upload.writer.write(b"x" * (size - 200 * KIB))
    answers = await asyncio.gather(*(upload.answer() for upload in begun))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    for upload in begun:
        upload.close()


async def test_small_bodies_do_not_wait_for_large_ones(server: HttpServer, keeper: Keeper) -> None:
    keeper.open.clear()
    large = [asyncio.ensure_future(post(server, TOTAL)) for _ in range(3)]
    await eventually(lambda: keeper.held >= TOTAL)
    small = asyncio.ensure_future(post(server, SMALL_BODY_BYTES))
    await eventually(lambda: keeper.held >= TOTAL + SMALL_BODY_BYTES)
    keeper.open.set()
    for answer in await asyncio.gather(small, *large):
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", END)
async def test_without_room_a_body_gets_503_in_bounded_time(
    hasty: HttpServer, keeper: Keeper, head: Head
) -> None:
    keeper.open.clear()
    first = asyncio.ensure_future(post(hasty, 2 * TOTAL))
    await eventually(lambda: keeper.held == 2 * TOTAL)
    answer = await post(hasty, TOTAL, head)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 5\r\n" in answer.lower()
    assert b"max_total_body_bytes" in answer
    keeper.open.set()
    assert (await first).startswith(b"HTTP/1.1 200")
    assert (await post(hasty, TOTAL, head)).startswith(b"HTTP/1.1 200")


async def gone_while_waiting(server: HttpServer, keeper: Keeper) -> None:
    waiting = await Upload.begin(server, declared(TOTAL))
    waiting.writer.write(b"x" * (100 * KIB))
    await asyncio.sleep(0.05)
    waiting.close()


async def gone_within_its_body(server: HttpServer, keeper: Keeper) -> None:
    waiting = await Upload.begin(server, chunked(TOTAL))
    waiting.writer.write(b"x" * (900 * KIB))
    await waiting.writer.drain()
    waiting.close()


@pytest.mark.parametrize("leave", [gone_while_waiting, gone_within_its_body])
async def test_clients_that_leave_give_their_room_back(
    server: HttpServer, keeper: Keeper, leave: Callable[[HttpServer, Keeper], Awaitable[None]]
) -> None:
    keeper.open.clear()
    first = asyncio.ensure_future(post(server, 2 * TOTAL))
    await eventually(lambda: keeper.held == 2 * TOTAL)
    for _ in range(5):
        await leave(server, keeper)
    keeper.open.set()
    assert (await first).startswith(b"HTTP/1.1 200")
    answers = await asyncio.gather(*(post(server, 2 * TOTAL) for _ in range(3)))
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    await eventually(lambda: keeper.held == 0)


async def test_pipelined_bodies_are_served_in_order(server: HttpServer) -> None:
    sizes = [TOTAL, 3, 2 * TOTAL, SMALL_BODY_BYTES + 1]
    upload = await Upload.begin(server, b"")

    async def send() -> None:
        for size in sizes:
            upload.writer.write(declared(size) + b"x" * size)
            await upload.writer.drain()

    sending = asyncio.ensure_future(send())
    for size in sizes:
        assert (await upload.answer()).endswith(b"%d" % size)
    await sending
    upload.close()


async def test_a_refused_body_does_not_break_its_connection(hasty: HttpServer, keeper: Keeper) -> None:
    keeper.open.clear()
    first = asyncio.ensure_future(post(hasty, 2 * TOTAL))
    await eventually(lambda: keeper.held == 2 * TOTAL)
    upload = await Upload.begin(hasty, declared(TOTAL) + b"x" * TOTAL)
    assert (await upload.answer()).startswith(b"HTTP/1.1 503")
    keeper.open.set()
    assert (await first).startswith(b"HTTP/1.1 200")
    upload.writer.write(declared(3) + b"abc")
    assert (await upload.answer()).endswith(b"\r\n\r\n3")
    upload.close()


async def nothing() -> dict[str, object]:
    return {"type": "http.request", "body": b"x" * KIB, "more_body": True}


async def test_a_cancelled_wait_gives_its_turn_to_the_next() -> None:
    budget = BodyBudget(KIB, wait_seconds=30)
    first, second, third = (budget.body(nothing) for _ in range(3))
    await first.receive()
    await first.receive()  # it exceeds the budget
    waits = [asyncio.ensure_future(body.receive()) for body in (second, third)]
    await asyncio.sleep(0)
    first.close()
    waits[0].cancel()  # in the same turn of the loop: it has been woken and does not know yet
    async with asyncio.timeout(5):
        await waits[1]
    second.close()
    third.close()
    assert budget.held_bytes == 0


async def test_bodies_for_unknown_callbacks_are_not_read(tmp_path: Path) -> None:
    """Strangers could hold all the room that known callers share."""
    async with guarded_server(tmp_path, max_total_body_bytes=TOTAL, max_body_bytes=MAX_BODY) as server:
        url = server.config.url
        place = urlsplit(url)
        key = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        head = (
            f"POST /callbacks/unknown HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {MAX_BODY}\r\n\r\n"
        )
        writers = []
        for _ in range(8):
            reader, writer = await asyncio.open_connection(place.hostname, place.port)
            writers.append(writer)
            writer.write(head.encode() + b"1" * (BUFFER - KIB))
            status = await asyncio.wait_for(reader.readline(), 30)
            assert status.split()[1] == b"404"  # while most of the body is still missing
        assert (await send(url, "POST", "/sessions/create", key, b'{"session_id": "s"}')).status == 200
        state = json.dumps({"a": "x" * (TOTAL // 2)}).encode()
        assert (await send(url, "POST", "/sessions/s/state", key, state)).status == 200
        for writer in writers:
            writer.close()
