"""Readers of a stream learn which attempt has written an event, and where a new one has taken over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from llama_deploy import Client, NewAttempt, SyncClient, TaskEvent
from llama_deploy.types.instance_protocol import ReleaseRequest, TaskDispatch, UnfinishedSteps
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, get, post, read_stream, submit
from tests.integration.test_journals import answer, park, write

TAKEOVER = {
    "attempt": 2,
    "position": 3,
    "repeats_from": 1,
    "unfinished": [3],
    "begun": 4,
    "reason": "handed_back",
}


async def half_written(http: HttpConnection, instance: Instance) -> TaskDispatch:
    """Run a first attempt: a step ends after one event, the next has streamed two when it is handed back."""
    await submit(http, task_id="t")
    first = await instance.next_dispatch()
    await instance.claim(first)
    unfinished = UnfinishedSteps(first_event=1, runs=[3], begun=4)
    title = {"type": "Number", "data": {"n": 0}}
    await write(instance, first, 0, events=[title], unfinished=unfinished)
    await instance.stream(first, first=1, numbers=range(1, 3))
    await has_events(http, 3)
    await instance.server.plane.attempts.release(
        [ReleaseRequest(task_id="t", attempt=1, token=instance.token)]
    )
    return await instance.next_dispatch()


async def has_events(http: HttpConnection, count: int) -> None:
    async with asyncio.timeout(10), http.stream(HttpRequest("GET", "/tasks/t/events")) as lines:
        seen = 0
        async for line in lines:
            seen += bool(line)
            if seen == count:
                return


async def taken_over(http: HttpConnection, instance: Instance) -> None:
    """Let the second attempt repeat the two events, and end the task."""
    second = await half_written(http, instance)
    await instance.claim(second)
    await instance.stream(second, first=0, numbers=range(1, 3))
    await instance.finish(second, first=2)
    await get(http, "/tasks/t", wait=10)


def shape(line: dict[str, Any]) -> object:
    return line["new_attempt"] if "new_attempt" in line else (line["index"], line["attempt"])


async def test_each_event_names_its_attempt_and_a_line_tells_where_a_new_one_takes_over(
    http: HttpConnection, instance: Instance
) -> None:
    await taken_over(http, instance)
    events = [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert [shape(line) for line in await read_stream(http, "/tasks/t/events")] == events
    marked = await read_stream(http, "/tasks/t/events?attempts=true")
    assert [shape(line) for line in marked] == [*events[:3], TAKEOVER, *events[3:]]


@pytest.mark.parametrize(("after", "is_told"), [(-1, True), (1, True), (2, True), (3, False), (5, False)])
async def test_a_reader_is_told_from_any_cursor_before_the_takeover(
    http: HttpConnection, instance: Instance, after: int, *, is_told: bool
) -> None:
    await taken_over(http, instance)
    lines = [shape(line) for line in await read_stream(http, f"/tasks/t/events?attempts=true&after={after}")]
    assert (TAKEOVER in lines) is is_told
    if is_told:
        assert lines[lines.index(TAKEOVER) + 1] == (3, 2)


async def test_a_follower_is_told_before_the_new_attempt_has_streamed(
    http: HttpConnection, instance: Instance
) -> None:
    async with open_stream(http, "/tasks/t/events?attempts=true&after=2") as lines:
        second = await half_written(http, instance)
        assert shape(await anext(lines)) == TAKEOVER
        await instance.claim(second)
        await instance.finish(second)
        assert shape(await anext(lines)) == (3, 2)


@asynccontextmanager
async def open_stream(http: HttpConnection, path: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    await submit(http, task_id="t")
    async with asyncio.timeout(20), http.stream(HttpRequest("GET", path)) as lines:

        async def objects() -> AsyncIterator[dict[str, Any]]:
            async for line in lines:
                if line:
                    yield json.loads(line)

        yield objects()


async def test_a_woken_run_takes_over_nothing(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    first = await instance.next_dispatch()
    await instance.claim(first)
    await instance.stream(first, first=0, numbers=range(2))
    await has_events(http, 2)
    await park(instance, first)
    await post(http, "/tasks/t/events", answer())
    second = await instance.next_dispatch()
    await instance.claim(second)
    await instance.finish(second)
    await get(http, "/tasks/t", wait=10)
    lines = await read_stream(http, "/tasks/t/events?attempts=true")
    assert [shape(line) for line in lines] == [(0, 1), (1, 1), (2, 2)]


async def test_the_route_of_0_6_has_the_data_of_events_only(http: HttpConnection, instance: Instance) -> None:
    await taken_over(http, instance)
    session_id = (await get(http, "/tasks/t"))["session_id"]
    lines = await read_stream(http, f"/sessions/{session_id}/tasks/t/result_stream")
    assert [line.get("n") for line in lines[:5]] == [0, 1, 2, 1, 2]
    assert len(lines) == 6


# -- server-sent events


async def server_sent(http: HttpConnection, path: str, **headers: str) -> list[dict[str, str]]:
    """Return the fields of each message, comments included under an empty name."""
    request = HttpRequest("GET", path, headers={"Accept": "text/event-stream", **headers})
    messages: list[dict[str, str]] = [{}]
    async with asyncio.timeout(10), http.stream(request) as lines:
        async for line in lines:
            if not line:
                messages.append({})
                continue
            name, _, value = line.decode().partition(": ")
            messages[-1][name] = value
    assert messages[0] == {"retry": "1000"}
    return [message for message in messages[1:] if message]


async def test_server_sent_events_have_ids_and_a_new_attempt_has_none(
    http: HttpConnection, instance: Instance
) -> None:
    await taken_over(http, instance)
    messages = await server_sent(http, "/tasks/t/events")
    assert [message.get("id") for message in messages] == ["0", "1", "2", None, "3", "4", "5"]
    assert [message.get("event") for message in messages] == [None, None, None, "attempt", None, None, None]
    assert json.loads(messages[3]["data"]) == TAKEOVER
    written = {"terminal": False, "attempt": 1, "step_run": None}
    assert json.loads(messages[0]["data"]) == {"index": 0, "type": "Number", "data": {"n": 0}, **written}


async def test_a_browser_resumes_after_the_last_event_that_it_has_seen(
    http: HttpConnection, instance: Instance
) -> None:
    await taken_over(http, instance)
    messages = await server_sent(http, "/tasks/t/events?after=-1", **{"Last-Event-ID": "3"})
    assert [message.get("id") for message in messages] == ["4", "5"]


async def test_a_browser_that_has_seen_the_end_is_told_not_to_come_back(
    http: HttpConnection, instance: Instance
) -> None:
    await taken_over(http, instance)
    request = HttpRequest(
        "GET", "/tasks/t/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "5"}
    )
    status, _ = await http.send(request)
    assert status == 204


async def test_a_last_event_id_that_is_no_number_is_refused(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t")
    request = HttpRequest(
        "GET", "/tasks/t/events", headers={"Accept": "text/event-stream", "Last-Event-ID": "x"}
    )
    status, _ = await http.send(request)
    assert status == 422


# -- the client


async def test_the_client_tells_of_new_attempts_if_it_is_asked_to(
    http: HttpConnection, instance: Instance
) -> None:
    await taken_over(http, instance)
    async with Client(instance.server.config.url) as client:
        handle = client.task("t")
        plain = [event async for event in handle.events()]
        assert all(isinstance(event, TaskEvent) for event in plain)
        items = [item async for item in handle.events(attempts=True)]
    assert items == [*plain[:3], NewAttempt(**TAKEOVER), *plain[3:]]


async def test_so_does_the_client_without_await(http: HttpConnection, instance: Instance) -> None:
    await taken_over(http, instance)

    def read() -> list[TaskEvent | NewAttempt]:
        with SyncClient(instance.server.config.url) as client:
            return list(client.task("t").events(attempts=True))

    items = await asyncio.to_thread(read)
    assert items[3] == NewAttempt(**TAKEOVER)
