"""Feeds of task changes: what a dashboard reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_deploy import Client
from llama_deploy.control_plane.streams import task_feed
from llama_deploy.control_plane.streams.feed_cursor import FeedFilter, encode_feed_cursor
from llama_deploy.errors import CursorExpiredError, InvalidRequestError
from llama_deploy.types import TaskStatus
from llama_deploy.types.feeds import FeedItem
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, post, submit
from tests.integration.in_process import running_stack
from tests.integration.repairable_workflows import AsksTwice

Lines = AsyncIterator[dict[str, Any]]


@asynccontextmanager
async def open_feed(http: HttpConnection, query: str = "") -> AsyncIterator[Lines]:
    """Read a feed; its first line has come."""
    request = HttpRequest("GET", f"/events?{query}", headers={"Accept": "application/x-ndjson"})
    async with asyncio.timeout(20), http.stream(request) as lines:

        async def objects() -> Lines:
            async for line in lines:
                if line:
                    yield json.loads(line)

        yield objects()


async def read_stream(http: HttpConnection, path: str) -> list[dict[str, Any]]:
    request = HttpRequest("GET", path, headers={"Accept": "application/x-ndjson"})
    async with asyncio.timeout(10), http.stream(request) as lines:
        return [json.loads(line) async for line in lines if line]


async def told(lines: Lines, task_id: str, status: str) -> list[str]:
    """Read until a task is told to have a status; return what was told of it."""
    seen = []
    async for line in lines:
        if (task := line.get("task")) and task["task_id"] == task_id:
            seen.append(task["status"])
            if task["status"] == status:
                return seen
    raise AssertionError("the feed has ended")


async def test_a_feed_tells_each_status_of_each_task(http: HttpConnection, instance: Instance) -> None:
    async with open_feed(http) as lines:
        assert set(await anext(lines)) == {"cursor"}
        await submit(http, task_id="t")
        assert await told(lines, "t", "queued") == ["queued"]
        dispatch = await instance.next_dispatch()
        await instance.claim(dispatch)
        assert await told(lines, "t", "running") == ["running"]
        await instance.finish(dispatch)
        line = await anext(line async for line in lines if "task" in line)
        assert line["task"] == {
            "task_id": "t",
            "session_id": line["task"]["session_id"],
            "service_name": "echo",
            "status": "succeeded",
            "changed_at": line["task"]["finished_at"],
            "attempt": 1,
            "instance_id": line["task"]["instance_id"],
            "created_at": line["task"]["created_at"],
            "finished_at": line["task"]["finished_at"],
            "tags": [],
        }


async def test_a_filter_selects_services_sessions_and_statuses(
    http: HttpConnection, instance: Instance
) -> None:
    session = await post(http, "/sessions/create")
    async with (
        open_feed(http, f"session={session}") as of_session,
        open_feed(http, "service=other") as of_other,
        open_feed(http, "service=other&service=echo&status=succeeded") as ended,
    ):
        for lines in (of_session, of_other, ended):
            await anext(lines)
        for task_id, session_id in (("t1", None), ("t2", session)):
            await submit(http, task_id=task_id, session_id=session_id)
            await instance.run_one()
        assert [(await task_of(ended))["task_id"] for _ in range(2)] == ["t1", "t2"]
        assert (await task_of(of_session))["task_id"] == "t2"
        await deleted(http, session)
        async for line in of_other:
            assert "task" not in line
            if line.get("deleted") == "t2":
                break


async def task_of(lines: Lines) -> dict[str, Any]:
    """Return the next task that is told."""
    async for line in lines:
        if "task" in line:
            task: dict[str, Any] = line["task"]
            return task
    raise AssertionError("the feed has ended")


async def deleted(http: HttpConnection, session_id: str) -> None:
    await post(http, f"/sessions/{session_id}/delete")


async def test_a_reader_resumes_from_its_cursor(http: HttpConnection, instance: Instance) -> None:
    async with open_feed(http) as lines:
        cursor = (await anext(lines))["cursor"]
    await submit(http, task_id="t1")
    await instance.run_one()
    await submit(http, task_id="t2")
    async with open_feed(http, f"after={cursor}") as lines:
        seen = {}
        async for line in lines:
            if "cursor" in line:
                break
            seen[line["task"]["task_id"]] = line["task"]["status"]
        assert seen == {"t1": "succeeded", "t2": "queued"}


async def test_a_feed_ends_after_the_time_that_the_reader_waits(
    http: HttpConnection, instance: Instance
) -> None:
    (first,) = await read_stream(http, "/events?wait=0")
    await submit(http, task_id="t")
    task, position = await read_stream(http, f"/events?wait=0&after={first['cursor']}")
    assert task["task"]["task_id"] == "t"
    assert set(position) == {"cursor"}
    assert all(set(line) == {"cursor"} for line in await read_stream(http, "/events?wait=0.2"))


async def test_a_cursor_of_another_filter_or_time_is_refused(
    http: HttpConnection, instance: Instance
) -> None:
    async with open_feed(http) as lines:
        cursor = (await anext(lines))["cursor"]
    old = encode_feed_cursor(datetime.now(UTC) - timedelta(minutes=11), FeedFilter())
    for query, status, code in (
        (f"service=echo&after={cursor}", 422, "invalid_request"),
        ("after=what", 422, "invalid_request"),
        (f"after={old}", 410, "cursor_expired"),
        ("status=lost", 422, "invalid_request"),
    ):
        found, body = await http.send(HttpRequest("GET", f"/events?{query}"))
        assert (found, json.loads(body)["type"].rpartition(":")[2]) == (status, code), body


async def test_server_sent_events_have_ids_at_cursors_only(http: HttpConnection, instance: Instance) -> None:
    request = HttpRequest("GET", "/events", headers={"Accept": "text/event-stream"})
    async with asyncio.timeout(10), http.stream(request) as lines:
        read = [(await anext(lines)).decode() for _ in range(5)]
        assert read[:2] == ["retry: 1000", ""]
        assert read[2].startswith("id: 1-")
        assert read[3] == "event: cursor"
        await submit(http, task_id="t")
        assert [(await anext(lines)).decode() for _ in range(2)] == ["", "event: task"]
        assert json.loads((await anext(lines)).decode().removeprefix("data: "))["task_id"] == "t"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": read[2].removeprefix("id: ")}
    async with asyncio.timeout(10), http.stream(HttpRequest("GET", "/events", headers=headers)) as lines:
        assert [(await anext(lines)).decode() for _ in range(3)][2] == "event: task"


async def test_a_slow_reader_gets_the_last_status_of_each_task(
    http: HttpConnection, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_feed, "MAX_WAITING", 5)
    feeds = instance.server.plane.feeds
    parts = await feeds.open(FeedFilter())
    await anext(parts)
    for number in range(20):
        await submit(http, task_id=f"t{number}")
    for _ in range(20):
        await instance.run_one()
    seen: dict[str, TaskStatus] = {}
    async with asyncio.timeout(10):
        async for group in parts:
            for part in group:
                if isinstance(part, task_feed.Change):
                    seen[part.record.task_id] = part.record.status
            if len(seen) == 20 and set(seen.values()) == {TaskStatus.SUCCEEDED}:
                break
    await parts.aclose()


async def test_the_events_of_tasks_come_with_them(http: HttpConnection, instance: Instance) -> None:
    await submit(http, task_id="t1")
    first = await instance.next_dispatch()
    await instance.claim(first)
    token = instance.token
    await instance.stream(first, first=0, numbers=range(3))
    async with Client(instance.server.config.url) as client:
        async for event in client.task("t1").events():
            if event.index == 2:
                break
    async with open_feed(http, "stream=true") as lines:
        cursor = (await anext(lines))["cursor"]
        await submit(http, task_id="t2")
        second = await instance.next_dispatch()
        await instance.claim(second)
        await instance.stream(second, first=0, numbers=range(300))
        await instance.finish(second, first=300)
        instance.token = token
        await instance.finish(first, first=3)
        events = await events_of(lines, {"t1", "t2"})
    assert events == {"t1": [3], "t2": list(range(301))}
    async with open_feed(http, f"stream=true&after={cursor}") as lines:
        events = await events_of(lines, {"t1", "t2"})
    assert events == {"t1": [0, 1, 2, 3], "t2": list(range(301))}


async def events_of(lines: Lines, task_ids: set[str]) -> dict[str, list[int]]:
    """Read until the tasks have ended, and return the indexes of their events."""
    found: dict[str, list[int]] = {}
    left = set(task_ids)
    async for line in lines:
        if event := line.get("event"):
            found.setdefault(event["task_id"], []).append(event["index"])
            if event["terminal"]:
                left.discard(event["task_id"])
                if not left:
                    break
    return found


async def test_nothing_is_done_while_nobody_reads(http: HttpConnection, instance: Instance) -> None:
    plane = instance.server.plane
    parts = await plane.feeds.open(FeedFilter())
    await anext(parts)
    assert plane.feeds.feed.is_read
    await parts.aclose()
    assert not plane.feeds.feed.is_read
    number = plane.feeds.feed.number
    await submit(http, task_id="t")
    await instance.run_one()
    assert plane.feeds.feed.number == number


# -- the client


async def test_the_client_reads_a_feed_and_resumes_it(http: HttpConnection, instance: Instance) -> None:
    async with Client(instance.server.config.url) as client:
        items = client.events(service="echo", status=TaskStatus.SUCCEEDED)
        first = await anext(items)
        assert first.cursor is not None
        await submit(http, task_id="t1")
        await instance.run_one()
        assert (await ended(items)).task_id == "t1"
        await items.aclose()
        await submit(http, task_id="t2")
        await instance.run_one()
        again = client.events(service=["echo"], status=[TaskStatus.SUCCEEDED], after=first.cursor)
        assert {(await ended(again)).task_id for _ in range(2)} == {"t1", "t2"}
        await again.aclose()
        with pytest.raises(InvalidRequestError):
            await anext(client.events(after=first.cursor))
        old = encode_feed_cursor(datetime.now(UTC) - timedelta(minutes=11), FeedFilter())
        with pytest.raises(CursorExpiredError):
            await anext(client.events(after=old))


async def ended(items: AsyncIterator[FeedItem]) -> Any:
    async with asyncio.timeout(10):
        async for item in items:
            if item.task is not None:
                return item.task
    raise AssertionError("the feed has ended")


async def test_a_run_that_waits_in_memory_is_told_as_waiting() -> None:
    async with (
        running_stack() as stack,
        Client(stack.server.config.url) as client,
        stack.serving(stack.service(AsksTwice(), idle_timeout=None)),
        asyncio.timeout(30),
    ):
        begin = encode_feed_cursor(datetime.now(UTC), FeedFilter(statuses=frozenset({TaskStatus.WAITING})))
        live = client.events(after=begin, status=TaskStatus.WAITING)
        task_id = await stack.submit("service")
        first = await anext(item async for item in live if item.task is not None)
        assert first.task is not None
        assert (first.task.task_id, first.task.status) == (task_id, TaskStatus.WAITING)
        details = await stack.plane.task_lists.details(task_id)
        assert first.task.changed_at == details.since == details.waiting_since
        again = client.events(after=begin, status=TaskStatus.WAITING)
        assert await anext(item async for item in again if item.task is not None) == first
