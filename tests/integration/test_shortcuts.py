"""Shortcuts before an application, over a real HTTP server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated

import pytest
from fastapi import Body
from pydantic import BaseModel, Field, TypeAdapter

from llama_deploy.errors import (
    InternalServerError,
    InvalidRequestError,
    PayloadTooLargeError,
    TaskNotFoundError,
)
from llama_deploy.web.application import create_app
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import JSON_HEADERS, HttpRequest
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.shortcuts import Call, ForSome, Routes, Shortcuts

LIMIT = 1000
NUMBERS = TypeAdapter(list[int])


class Page(BaseModel):
    size: int = 10


async def numbers(call: Call) -> bytes:
    found = call.read_body(NUMBERS)
    return b'{"sum":%d,"size":%d}' % (sum(found), call.read_query(Page).size)


class SmallPage(BaseModel):
    size: int = Field(le=2)


async def limited(call: Call) -> bytes:
    return b"%d" % call.read_query(SmallPage).size


async def rest(call: Call) -> bytes:
    return b'{"rest":"%s"}' % call.rest.encode()


def body_of(body: Annotated[list[int], Body()]) -> list[int]:
    return body


async def nothing(_call: Call) -> None:
    return None


async def refuse(_call: Call) -> bytes:
    raise TaskNotFoundError("no such task", task_id="t1")


async def fail(_call: Call) -> bytes:
    raise RuntimeError("the reason")


@pytest.fixture
async def http() -> AsyncIterator[HttpConnection]:
    app = create_app(title="test")
    app.get("/numbers")(lambda: "of the application")
    app.put("/some/{name}")(body_of)
    routes: Routes = {
        ("POST", "/numbers"): numbers,
        ("POST", "/limited"): limited,
        ("POST", "/below/"): rest,
        ("POST", "/nothing"): nothing,
        ("POST", "/refuse"): refuse,
        ("POST", "/fail"): fail,
        ("PUT", "/some/"): ForSome(rest, lambda _, rest: rest == "this"),
    }
    settings = EdgeSettings(env_prefix="", hosts=(), max_body_bytes=LIMIT)
    front = build_edge(app, settings, shortcuts=routes)
    async with await HttpServer.start(front, host="127.0.0.1", port=0) as server:
        connection = HttpConnection(f"http://127.0.0.1:{server.port}")
        yield connection
        await connection.close()


async def test_body_and_query_are_read(http: HttpConnection) -> None:
    request = HttpRequest("POST", "/numbers", params={"size": 3}, json=[1, 2])
    assert await http.request(request) == {"sum": 3, "size": 3}


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (HttpRequest("POST", "/numbers", json=["x"]), "body.0: "),
        (HttpRequest("POST", "/numbers", content=b"{", headers=JSON_HEADERS), "body: "),
        (HttpRequest("POST", "/numbers", json=[], params={"size": "x"}), "query.size: "),
    ],
)
async def test_what_is_not_of_the_form_is_refused(
    http: HttpConnection, request_: HttpRequest, named: str
) -> None:
    with pytest.raises(InvalidRequestError, match=named):
        await http.request(request_)


@pytest.mark.parametrize("path", ["a", "a/b", "", "%C3%A4%20/"])
async def test_a_path_with_a_slash_stands_for_all_below_it(http: HttpConnection, path: str) -> None:
    answer = await http.request(HttpRequest("POST", "/below/" + path))
    assert answer == {"rest": path.replace("%C3%A4%20", "ä ")}


async def test_what_a_shortcut_does_not_take_is_left_to_the_application(http: HttpConnection) -> None:
    assert await http.request(HttpRequest("PUT", "/some/this", json=[1])) == {"rest": "this"}
    assert await http.request(HttpRequest("PUT", "/some/other", json=[1])) == [1]


async def test_one_query_for_two_routes_is_read_by_the_form_of_each(http: HttpConnection) -> None:
    for _ in range(2):
        sized = HttpRequest("POST", "/numbers", params={"size": 3}, json=[])
        assert await http.request(sized) == {"sum": 0, "size": 3}
        with pytest.raises(InvalidRequestError, match="size"):
            await http.request(HttpRequest("POST", "/limited", params={"size": 3}, json=[]))


async def test_none_is_no_content(http: HttpConnection) -> None:
    assert await http.send(HttpRequest("POST", "/nothing")) == (204, b"")


async def test_other_methods_and_paths_are_left_to_the_application(http: HttpConnection) -> None:
    assert await http.request(HttpRequest("GET", "/numbers")) == "of the application"
    assert (await http.send(HttpRequest("HEAD", "/numbers")))[0] == 200
    assert (await http.send(HttpRequest("PUT", "/numbers")))[0] == 405
    assert (await http.send(HttpRequest("GET", "/below/a")))[0] == 404
    assert (await http.send(HttpRequest("POST", "/numbers/1")))[0] == 404
    assert "openapi" in await http.request(HttpRequest("GET", "/openapi.json"))


async def test_errors_of_ours_are_told(http: HttpConnection) -> None:
    with pytest.raises(TaskNotFoundError, match="no such task") as caught:
        await http.request(HttpRequest("POST", "/refuse"))
    assert caught.value.task_id == "t1"


async def test_other_errors_are_logged_and_not_told(
    http: HttpConnection, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InternalServerError, match="RuntimeError in the server; see its log") as caught:
        await http.request(HttpRequest("POST", "/fail"))
    assert "the reason" not in str(caught.value)
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "POST /fail" in record.getMessage()
    assert "the reason" in (record.exc_text or "")
    assert await http.request(HttpRequest("POST", "/numbers", json=[1])) == {"sum": 1, "size": 10}


@pytest.mark.parametrize("path", ["/numbers", "/below/a", "/elsewhere"])
async def test_a_body_above_the_limit_is_refused_before_and_behind(http: HttpConnection, path: str) -> None:
    body = b"[" + b" " * LIMIT + b"]"
    with pytest.raises(PayloadTooLargeError, match="1000"):
        await http.request(HttpRequest("POST", path, content=body, headers=JSON_HEADERS))


async def test_a_client_that_goes_away_gets_no_answer() -> None:
    front = Shortcuts(create_app(title="test"), {("POST", "/fail"): fail})
    scope = {"type": "http", "method": "POST", "path": "/fail", "query_string": b"", "headers": []}
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)

    await front(scope, receive, send)
    assert sent == []
