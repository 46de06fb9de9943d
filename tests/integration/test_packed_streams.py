"""A stream that grows takes space in proportion to what is said in it, and is read as it was."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llama_deploy.control_plane.streams.stream_packer import StreamPacker
from llama_deploy.messages import ActionTypes
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.types.instance_protocol import AttemptEvents, AttemptOutcome, EventPayload, TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, submit

T = TypeVar("T")

WORDS = 2_000


def words(count: int) -> list[str]:
    chosen = random.Random(1)  # noqa: S311 - not a secret
    known = ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(2, 9))) + " " for _ in range(600)]
    return chosen.choices(known, k=count)


def answer(said: list[str]) -> list[EventPayload]:
    """Return what an agent streams: each event repeats the answer so far."""
    return [
        EventPayload(
            type="AgentStream",
            data={"delta": word, "response": "".join(said[: n + 1]), "tool_calls": [], "raw": None},
            step_run=1,
        )
        for n, word in enumerate(said)
    ]


async def run(instance: Instance, events: list[EventPayload], *, at_a_time: int) -> None:
    """Stream events, the last of them with the end of the task."""
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    *pieces, last = pieces_of(events, at_a_time)
    for first, piece in pieces:
        await instance.report(
            ActionTypes.TASK_STREAM, AttemptEvents(**sent(instance, dispatch, first, piece))
        )
    first, piece = last
    outcome = sent(instance, dispatch, first, piece)
    await instance.report(ActionTypes.COMPLETED_TASK, AttemptOutcome(status="succeeded", value=1, **outcome))


def pieces_of(events: list[EventPayload], size: int) -> Iterator[tuple[int, list[EventPayload]]]:
    for first in range(0, len(events), size):
        yield first, events[first : first + size]


def sent(
    instance: Instance, dispatch: TaskDispatch, first: int, events: list[EventPayload]
) -> dict[str, Any]:
    return {**instance.events(dispatch, first, range(0)), "events": events}


async def read(http: HttpConnection, after: int = -1, task_id: str = "t") -> list[dict[str, Any]]:
    request = HttpRequest("GET", f"/tasks/{task_id}/events", params={"after": after})
    async with asyncio.timeout(30), http.stream(request) as lines:
        return [json.loads(line) async for line in lines if line]


def bytes_of_streams(file: Path) -> int:
    """Return how much the rows of streams take, without their keys."""
    with closing(sqlite3.connect(file)) as database:
        (size,) = database.execute(
            "SELECT sum(length(data)) FROM (SELECT CAST(data AS BLOB) AS data FROM events"
            " UNION ALL SELECT data FROM event_packs)"
        ).fetchone()
    return int(size)


async def is_packed(store: StateStore, count: int, task_id: str = "t") -> bool:
    """Whether all but so many of the events of a task are in packs."""
    return len(await store.read(lambda tx: tx.events.loose(task_id, limit=10_000))) <= count


async def test_an_answer_of_2000_words_takes_at_most_three_bytes_for_each_byte_of_it(
    http: HttpConnection, instance: Instance, store: StateStore, tmp_path: Path
) -> None:
    said = words(WORDS)
    events = answer(said)
    await submit(http, task_id="t")
    streaming = asyncio.create_task(run(instance, events, at_a_time=5))
    live = await read(http)
    await streaming
    assert [event["data"] for event in live[:-1]] == [event.data for event in events]
    await eventually(lambda: is_packed(store, 0))
    text = "".join(said)
    assert bytes_of_streams(tmp_path / "state.db") <= 3 * len(text)
    again = await read(http)
    assert again == live
    for after in (0, 999, WORDS - 2, WORDS - 1):
        assert await read(http, after) == live[after + 1 :]


async def test_the_space_that_a_stream_takes_until_it_is_packed_is_used_again(
    http: HttpConnection, instance: Instance, store: StateStore, tmp_path: Path
) -> None:
    sizes = []
    for number in range(4):
        await submit(http, task_id=f"t{number}")
        await run(instance, answer(words(WORDS)), at_a_time=20)
        await read(http, WORDS - 1, f"t{number}")
        await eventually(partial(is_packed, store, 0, f"t{number}"))
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            # The size of the file depends on when the log was moved into it.
            sizes += database.execute("PRAGMA page_count").fetchone()
    assert sizes[-1] < 1.25 * sizes[0]


async def test_a_short_stream_is_stored_as_it_comes(
    http: HttpConnection, instance: Instance, store: StateStore
) -> None:
    await submit(http, task_id="t")
    await run(instance, answer(words(20)), at_a_time=10)
    assert len(await read(http)) == 21
    assert await store.read(lambda tx: tx.events.last_pack("t")) is None


async def test_an_open_stream_is_packed_while_it_grows(
    http: HttpConnection, instance: Instance, store: StateStore
) -> None:
    await submit(http, task_id="t")
    dispatch = await instance.next_dispatch()
    await instance.claim(dispatch)
    for first in range(0, 1_000, 100):
        await instance.stream(dispatch, first=first, numbers=range(first, first + 100))
    await eventually(lambda: is_packed(store, 488))
    await instance.finish(dispatch, first=1_000)
    assert [event["index"] for event in await read(http)] == list(range(1_001))
    await eventually(lambda: is_packed(store, 0))
    assert [event["index"] for event in await read(http, 511)] == list(range(512, 1_001))


class SpyStore(SQLiteStateStore):
    """The stream of a task grows whenever somebody has read what is loose."""

    reads = 0

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        found = await super().read(work)
        self.reads += 1
        first = 100 * self.reads
        events = [EventRecord("t", first + n, "Number", "{}") for n in range(100)]
        await self.transact(lambda tx: tx.events.insert(events))
        return found


async def test_a_stream_that_goes_on_growing_is_not_packed_again_at_once() -> None:
    async with await SpyStore.connect("sqlite:///:memory:") as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))
        await store.transact(lambda tx: tx.tasks.insert([a_task("t")]))
        events = [EventRecord("t", n, "Number", "{}") for n in range(100)]
        await store.transact(lambda tx: tx.events.insert(events))
        async with asyncio.timeout(10):
            await StreamPacker(store).pack("t")
        assert store.reads == 1


async def test_a_stream_of_a_session_that_is_deleted_meanwhile_is_not_packed() -> None:
    class DeletingStore(SQLiteStateStore):
        async def read(self, work: Callable[[StoreTransaction], T]) -> T:
            found = await super().read(work)
            await self.transact(lambda tx: tx.sessions.delete(["s1"]))
            return found

    async with await DeletingStore.connect("sqlite:///:memory:") as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))
        await store.transact(lambda tx: tx.tasks.insert([a_task("t")]))
        events = [EventRecord("t", n, "Number", "{}") for n in range(100)]
        await store.transact(lambda tx: tx.events.insert(events))
        await StreamPacker(store).pack("t")
        assert await store.transact(lambda tx: tx.events.last_pack("t")) is None
