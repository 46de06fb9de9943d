"""Both connections against a real HTTP server."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

import pytest
from fastapi import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from llama_deploy.errors import (
    ClosedError,
    InternalServerError,
    PayloadTooLargeError,
    TaskNotFoundError,
    UnavailableError,
)
from llama_deploy.web.application import create_app
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.sync_http_connection import SyncHttpConnection

app = create_app(title="test")


@app.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request) -> Response:
    body = (await request.body()).decode()
    return JSONResponse(
        {"params": dict(request.query_params), "body": body, "type": request.headers.get("content-type")},
        headers={"ETag": '"3"'},
    )


@app.get("/missing")
async def missing() -> None:
    raise TaskNotFoundError("no such task", task_id="t1")


@app.get("/tasks/{task_id}")
async def task(task_id: str) -> None:
    raise TaskNotFoundError("no such task", task_id=task_id)


@app.api_route("/moved", methods=["GET", "POST"])
async def moved() -> Response:
    return Response(status_code=302, headers={"Location": "/echo"})


@app.get("/closed")
async def closed() -> None:
    raise ClosedError("the broker is closed")


@app.get("/unprintable")
async def unprintable() -> None:
    raise TaskNotFoundError("no task \ud800", task_id="\ud800")


@app.get("/text")
async def text() -> Response:
    return Response("hello")


@app.get("/nothing")
async def nothing() -> Response:
    return Response(status_code=204)


@app.get("/slow")
async def slow(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@app.get("/lines")
async def lines() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"on", b"e\ntwo\n\nth", b"ree"):
            yield piece

    return StreamingResponse(pieces())


@app.get("/broken")
async def broken() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one\n"
        raise ConnectionResetError

    return StreamingResponse(pieces())


@pytest.fixture
async def url() -> AsyncIterator[str]:
    edge = build_edge(app, EdgeSettings(env_prefix="", hosts=(), max_body_bytes=1000))
    async with await HttpServer.start(edge, host="127.0.0.1", port=0) as server:
        yield f"http://127.0.0.1:{server.port}"


class SyncInThreads:
    """Drives `SyncHttpConnection` in a thread, so that one suite serves both connections."""

    def __init__(self, connection: SyncHttpConnection) -> None:
        self._connection = connection

    async def request(self, request: HttpRequest) -> object:
        return await asyncio.to_thread(self._connection.request, request)

    async def etag(self, request: HttpRequest) -> str:
        return (await asyncio.to_thread(self._connection.answer, request)).headers["etag"]

    async def send(self, request: HttpRequest) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._connection.send, request)

    async def lines(self, request: HttpRequest, into: list[bytes]) -> None:
        def read() -> None:
            with self._connection.stream(request) as found:
                for line in found:
                    into.append(line)  # noqa: PERF402 - what came before an error counts

        await asyncio.to_thread(read)

    async def leave(self, request: HttpRequest, error: Exception) -> None:
        def raise_inside() -> None:
            with self._connection.stream(request):
                raise error

        await asyncio.to_thread(raise_inside)

    async def close(self) -> None:
        self._connection.close()


class Async:
    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.request = connection.request
        self.send = connection.send
        self.close = connection.close

    async def etag(self, request: HttpRequest) -> str:
        return (await self._connection.answer(request)).headers["etag"]

    async def lines(self, request: HttpRequest, into: list[bytes]) -> None:
        async with self._connection.stream(request) as found:
            async for line in found:
                into.append(line)  # noqa: PERF401 - what came before an error counts

    async def leave(self, request: HttpRequest, error: Exception) -> None:
        async with self._connection.stream(request):
            raise error


Either: TypeAlias = SyncInThreads | Async


@pytest.fixture(params=["async", "sync"])
async def connection(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Either]:
    opened: Either = (
        SyncInThreads(SyncHttpConnection(url)) if request.param == "sync" else Async(HttpConnection(url))
    )
    yield opened
    await opened.close()


async def test_parameters_body_and_headers_travel(connection: Either) -> None:
    request = HttpRequest("POST", "/echo", params={"wait": 1.5, "name": "a b&c"}, json={"ä": 1})
    assert await connection.request(request) == {
        "params": {"wait": "1.5", "name": "a b&c"},
        "body": '{"ä":1}',
        "type": "application/json",
    }
    assert await connection.etag(request) == '"3"'


async def test_a_body_may_be_bytes(connection: Either) -> None:
    request = HttpRequest("POST", "/echo", content=b'"x"', headers={"Content-Type": "application/a+json"})
    assert await connection.request(request) == {"params": {}, "body": '"x"', "type": "application/a+json"}


async def test_no_body_is_none(connection: Either) -> None:
    assert await connection.request(HttpRequest("GET", "/nothing")) is None


async def test_problem_details_become_the_error_with_its_facts(connection: Either) -> None:
    with pytest.raises(TaskNotFoundError, match="no such task") as caught:
        await connection.request(HttpRequest("GET", "/missing"))
    assert caught.value.task_id == "t1"
    with pytest.raises(TaskNotFoundError):
        await connection.lines(HttpRequest("GET", "/missing"), [])


async def test_a_refusal_is_an_answer_to_send(connection: Either) -> None:
    status, body = await connection.send(HttpRequest("GET", "/missing"))
    assert status == 404
    assert b"task_not_found" in body


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirection_is_an_error_and_is_not_followed(connection: Either, method: str) -> None:
    request = HttpRequest(method, "/moved")
    with pytest.raises(InternalServerError, match="302, a redirect"):
        await connection.request(request)
    assert (await connection.send(request))[0] == 302
    with pytest.raises(InternalServerError, match="/moved"):
        await connection.lines(request, [])


async def test_what_is_closed_over_there_may_be_back(connection: Either) -> None:
    with pytest.raises(UnavailableError, match="closed") as caught:
        await connection.request(HttpRequest("GET", "/closed"))
    assert type(caught.value) is UnavailableError
    assert caught.value.retriable
    assert (await connection.send(HttpRequest("GET", "/closed")))[0] == 503


async def test_a_problem_with_text_that_is_not_utf8_arrives(connection: Either) -> None:
    with pytest.raises(TaskNotFoundError, match=r"no task \?"):
        await connection.request(HttpRequest("GET", "/unprintable"))


async def test_an_oversized_body_is_refused(connection: Either) -> None:
    with pytest.raises(PayloadTooLargeError):
        await connection.request(HttpRequest("POST", "/echo", json="x" * 2000))


async def test_what_is_not_json_is_the_servers_fault(connection: Either) -> None:
    with pytest.raises(InternalServerError, match="hello"):
        await connection.request(HttpRequest("GET", "/text"))


async def test_no_answer_in_time_is_unavailable(connection: Either) -> None:
    with pytest.raises(UnavailableError, match="/slow"):
        await connection.request(HttpRequest("GET", "/slow", timeout=0.1))


async def test_lines_come_whole_however_they_are_sent(connection: Either) -> None:
    found: list[bytes] = []
    await connection.lines(HttpRequest("GET", "/lines"), found)
    assert found == [b"one", b"two", b"", b"three"]


async def test_a_stream_that_breaks_is_unavailable_after_what_came(connection: Either) -> None:
    found: list[bytes] = []
    with pytest.raises(UnavailableError, match="/broken"):
        await connection.lines(HttpRequest("GET", "/broken"), found)
    assert found == [b"one"]


async def test_errors_of_the_reader_stay_as_they_are(connection: Either) -> None:
    with pytest.raises(TimeoutError, match="my own"):
        await connection.leave(HttpRequest("GET", "/lines"), TimeoutError("my own"))


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("http://127.0.0.1:1", "Connection refused"),
        ("http://nowhere.invalid", "Name or service not known|Temporary failure in name resolution"),
        ("https://127.0.0.1:{port}", "the server does not speak TLS at this port"),
    ],
)
async def test_no_connection_is_unavailable_for_a_reason_in_plain_words(
    url: str, server: str, reason: str
) -> None:
    server = server.format(port=url.rpartition(":")[2])
    for connection in (Async(HttpConnection(server)), SyncInThreads(SyncHttpConnection(server))):
        with pytest.raises(UnavailableError) as caught:
            await connection.request(HttpRequest("GET", "/"))
        await connection.close()
        place = f"cannot connect to {server}|GET {server}/: no answer"
        assert re.fullmatch(f"({place}): ({reason})", str(caught.value))


@contextmanager
def breaking(*, reset: bool) -> Iterator[str]:
    """A server that closes each connection when it has read a request, or resets it."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                opened, _ = listening.accept()
                with opened:
                    opened.recv(65536)
                    if reset:
                        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            serving.join()


BROKEN = "Remote end closed connection without response|Server disconnected|Connection reset by peer"


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_breaks_is_unavailable_for_a_reason_in_plain_words(*, reset: bool) -> None:
    with breaking(reset=reset) as server:
        for connection in (Async(HttpConnection(server)), SyncInThreads(SyncHttpConnection(server))):
            with pytest.raises(UnavailableError) as caught:
                await connection.request(HttpRequest("POST", "/echo", json={}))
            await connection.close()
            assert re.fullmatch(f"POST {server}/echo: no answer: ({BROKEN})", str(caught.value))


NEVER_CLOSED = """
import asyncio, sys
from llama_deploy.client import Client

client = Client(control_plane_url=sys.argv[1])
loops = []

async def use(task_id):
    loops.append(asyncio.get_running_loop())
    try:
        await client.task(task_id).info()
    except LookupError:
        print("answered")

asyncio.run(use("a"))
asyncio.run(use("b"))
try:
    client.sync.task("c").info()
except LookupError:
    print("answered")
"""


async def test_a_client_that_nobody_closes_makes_no_noise(url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NEVER_CLOSED, url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, noise = await process.communicate()
    assert noise.decode() == ""
    assert out.decode().split() == ["answered"] * 3
