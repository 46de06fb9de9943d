"""Packed streams of ended tasks: exported, imported, packed again, trimmed, and read from any cursor."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.plane import utc_now
from llama_deploy.control_plane.requests.tasks.export_requests import Exports
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow
from llama_deploy.control_plane.streams.stream_packer import StreamPacker
from llama_deploy.errors import EventsExpiredError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types import TaskResult, TaskStatus

COUNT = 1500
NOW = utc_now()


def an_event(number: int) -> EventRecord:
    data = json.dumps({"text": "word " * (number % 300), "n": number})
    return EventRecord("t", number, f"E{number % 2}", data, attempt=1 + number // 700, step_run=number % 3)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[StateStore]:
    uri = "sqlite:///:memory:"
    if request.param == "postgresql":
        uri = request.getfixturevalue("postgresql_uri")
    async with await open_state_store(uri) as store:
        await store.transact(fill)
        await StreamPacker(store).pack("t")
        yield store


def fill(tx: StoreTransaction) -> None:
    ended = TaskStatus.SUCCEEDED
    result = TaskResult(task_id="t", result="", status=ended, attempts=1)
    at = NOW - timedelta(days=3)
    tx.sessions.insert([a_session("s1")])
    tx.tasks.insert(
        [
            a_task(
                "t",
                session_id="s1",
                status=ended,
                created_at=at,
                status_changed_at=at,
                finished_at=at,
                stream_length=COUNT + 1,
                result=result.model_dump_json(),
            )
        ]
    )
    tx.events.insert([*map(an_event, range(COUNT)), an_event(COUNT)._replace(terminal=True)])


async def read(store: StateStore, task_id: str, after: int = -1) -> list[EventRecord]:
    return [event async for page in follow(store, StreamHub(), task_id, after=after) for event in page]


async def export(store: StateStore, task_id: str) -> dict[str, Any]:
    return (await Exports(store, utc_now).export(task_id)).model_dump(mode="json")


async def loose(store: StateStore, task_id: str) -> int:
    return len(await store.read(lambda tx: tx.events.loose(task_id, limit=COUNT + 1)))


async def test_a_copy_of_a_packed_stream_is_read_from_any_cursor_packed_or_not(store: StateStore) -> None:
    assert await loose(store, "t") == 0
    document = await export(store, "t")
    assert len(document["events"]) == COUNT + 1
    await Exports(store, utc_now).import_(document, task_id="copy")
    assert await loose(store, "copy") == COUNT
    for is_packed in (False, True):
        for after in (-1, 0, 511, 512, 777, COUNT - 2, COUNT - 1):
            expected = (await read(store, "t"))[after + 1 :]
            found = await read(store, "copy", after)
            assert [each._replace(task_id="t") for each in found] == expected
        if not is_packed:
            await StreamPacker(store).pack("copy")
    assert await loose(store, "copy") == 0
    assert (await export(store, "copy"))["events"] == document["events"]


async def test_of_a_packed_stream_that_was_trimmed_the_end_is_read_and_copied(store: StateStore) -> None:
    config = ControlPlaneConfig(retention_event_days=1)
    storage = Storage(store, config, removals=KnownRemovals(), clock=utc_now)
    storage.retention.pace.hurried = True
    await storage.retention.sweep()
    with pytest.raises(EventsExpiredError):
        await read(store, "t", 100)
    assert [each.position for each in await read(store, "t", COUNT - 1)] == [COUNT]
    document = await export(store, "t")
    assert [each["index"] for each in document["events"]] == [COUNT]
    await Exports(store, utc_now).import_(document, task_id="copy")
    assert [each.position for each in await read(store, "copy", COUNT - 1)] == [COUNT]
    with pytest.raises(EventsExpiredError):
        await read(store, "copy", 100)
    await StreamPacker(store).pack("copy")
    assert await store.read(lambda tx: tx.events.last_pack("copy")) is None
