"""A reader asks for some events of a stream, and gets them as objects if it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.types import TaskEvent
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import read_stream
from tests.integration.in_process import Stack, result_of, running_stack
from tests.integration.test_stream_attempts import server_sent


class WrittenWord(Event):
    text: str


class PercentDone(Event):
    percent: int


class Writing(Workflow):
    @step
    async def write(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(ev.get("count")):
            ctx.write_event_to_stream(WrittenWord(text=f"word {n}"))
            if n % 10 == 9:
                ctx.write_event_to_stream(PercentDone(percent=n))
        return StopEvent(result="done")


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[HttpConnection]:
    connection = HttpConnection(stack.server.config.url)
    yield connection
    await connection.close()


async def written(stack: Stack, *, count: int = 20, **settings: Any) -> str:
    async with stack.serving(stack.service(Writing(), **settings)):
        task_id = await stack.submit(count=count)
        assert result_of(await stack.end(task_id)) == "done"
    return task_id


def shape(event: dict[str, Any]) -> object:
    return event.get("index", event)


@pytest.mark.parametrize(
    "types", ["types=PercentDone", "types=PercentDone,Unknown", "types=Unknown&types=PercentDone"]
)
async def test_a_reader_gets_the_classes_that_it_names_and_the_end(
    stack: Stack, http: HttpConnection, types: str
) -> None:
    task_id = await written(stack)
    lines = await read_stream(http, f"/tasks/{task_id}/events?{types}")
    assert [shape(line) for line in lines] == [10, 21, 22]
    messages = await server_sent(http, f"/tasks/{task_id}/events?{types}")
    assert [message.get("id") for message in messages] == ["10", "21", "22"]


async def test_a_reader_learns_how_far_it_has_come_without_events_for_it(
    stack: Stack, http: HttpConnection
) -> None:
    task_id = await written(stack, count=1_999)
    path = f"/tasks/{task_id}/events?types=WrittenWord"
    lines = [shape(line) for line in await read_stream(http, path + "&after=9")]
    assert lines[:3] == [11, 12, 13]
    lines = [shape(line) for line in await read_stream(http, f"/tasks/{task_id}/events?types=PercentDone")]
    cursors = [line for line in lines if isinstance(line, dict)]
    assert cursors == [{"cursor": 499}, {"cursor": 999}, {"cursor": 1499}, {"cursor": 1999}]
    assert lines.index({"cursor": 999}) == lines.index(989) + 1
    messages = await server_sent(http, f"/tasks/{task_id}/events?types=PercentDone")
    assert {"id": "999"} in messages


async def test_too_many_names_are_refused(http: HttpConnection, stack: Stack) -> None:
    task_id = await written(stack)
    query = "&".join(f"types=T{n}" for n in range(51))
    status, body = await http.send(HttpRequest("GET", f"/tasks/{task_id}/events?{query}"))
    assert status == 422
    assert b"types" in body


async def test_internal_events_are_streamed_if_the_service_keeps_them_and_the_reader_asks(
    stack: Stack, http: HttpConnection
) -> None:
    task_id = await written(stack, count=1, stream_internal_events=True)
    lines = await read_stream(http, f"/tasks/{task_id}/events")
    assert [line["type"] for line in lines] == ["WrittenWord", "StopEvent"]
    lines = await read_stream(http, f"/tasks/{task_id}/events?internal=true")
    assert [line["index"] for line in lines] == list(range(len(lines)))
    changes = [line["data"] for line in lines if line["type"] == "StepStateChanged"]
    assert {"write"} <= {change["name"] for change in changes}
    assert {"running", "not_running"} <= {change["step_state"] for change in changes}
    assert [event.type for event in await stack.events(task_id)] == ["WrittenWord", "StopEvent"]


async def test_by_default_a_service_keeps_no_internal_events(stack: Stack, http: HttpConnection) -> None:
    task_id = await written(stack, count=1)
    lines = await read_stream(http, f"/tasks/{task_id}/events?internal=true")
    assert [line["type"] for line in lines] == ["WrittenWord", "StopEvent"]


async def test_the_client_reads_objects_of_the_classes_that_it_names(stack: Stack) -> None:
    task_id = await written(stack)
    async with Client(stack.server.config.url) as client:
        task = client.task(task_id)
        found = [event async for event in task.events(types=[PercentDone], as_classes=True)]
        assert found == [PercentDone(percent=9), PercentDone(percent=19), StopEvent(result="done")]
        named = [event async for event in task.events(types=["PercentDone"])]
        assert [(type(event), event.index) for event in named] == [
            (TaskEvent, 10),
            (TaskEvent, 21),
            (TaskEvent, 22),
        ]
        everything = [event async for event in task.events(as_classes=True, after=18)]
        assert everything == [
            WrittenWord(text="word 18"),
            WrittenWord(text="word 19"),
            PercentDone(percent=19),
            found[-1],
        ]


async def test_so_does_the_client_without_await(stack: Stack) -> None:
    task_id = await written(stack)
    async with Client(stack.server.config.url) as client:
        task = client.sync.task(task_id)
        found = await asyncio.to_thread(lambda: list(task.events(types=[PercentDone], as_classes=True)))
    assert found == [PercentDone(percent=9), PercentDone(percent=19), StopEvent(result="done")]
