"""Readers of streams share the memory for their pages."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, aclosing

import pytest

from llama_deploy.control_plane.streams import stream_hub
from llama_deploy.control_plane.streams.page_budget import (
    PAGE_BYTES,
    SMALL_PAGE_BYTES,
    TINY_PAGE_BYTES,
    PageBudget,
)
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import TaskStatus

SOON = 0.01
LONG = 30.0


async def test_pages_become_small_when_half_of_the_budget_is_used() -> None:
    budget = PageBudget(2 * PAGE_BYTES)
    shares = [budget.share() for _ in range(3)]
    assert [await share.take(SOON) for share in shares] == [PAGE_BYTES, SMALL_PAGE_BYTES, SMALL_PAGE_BYTES]
    for share in shares:
        share.close()
    assert budget.held_bytes == 0


async def test_a_reader_waits_for_room_and_gets_it() -> None:
    budget = PageBudget(PAGE_BYTES)
    first, second = budget.share(), budget.share()
    assert await first.take(SOON) == PAGE_BYTES
    first.resize(5 * PAGE_BYTES)  # its last event was large
    assert await second.take(SOON) == 0
    first.resize(PAGE_BYTES)
    assert await second.take(SOON) == TINY_PAGE_BYTES
    second.close()
    waiting = asyncio.ensure_future(second.take(LONG))
    await asyncio.sleep(0)
    first.resize(PAGE_BYTES - 1)
    assert await waiting == SMALL_PAGE_BYTES
    first.close()
    second.close()
    assert budget.held_bytes == 0


async def test_all_that_wait_get_room_in_their_order() -> None:
    budget = PageBudget(PAGE_BYTES)
    holder = budget.share()
    await holder.take(SOON)
    order: list[int] = []

    async def read(n: int) -> None:
        share = budget.share()
        assert await share.take(LONG)
        order.append(n)
        share.resize(PAGE_BYTES)  # each fills the budget
        await asyncio.sleep(0)
        share.close()

    readers = [asyncio.ensure_future(read(n)) for n in range(20)]
    await asyncio.sleep(0)
    holder.close()
    async with asyncio.timeout(10):
        await asyncio.gather(*readers)
    assert order == [*range(20)]
    assert budget.held_bytes == 0


async def test_a_reader_that_is_cancelled_when_its_turn_comes_passes_it_on() -> None:
    budget = PageBudget(PAGE_BYTES)
    holder, first, second = (budget.share() for _ in range(3))
    await holder.take(SOON)
    waits = [asyncio.ensure_future(share.take(LONG)) for share in (first, second)]
    await asyncio.sleep(0)
    holder.close()
    waits[0].cancel()
    async with asyncio.timeout(5):
        assert await waits[1]


async def test_a_reader_that_leaves_gives_back_its_page() -> None:
    budget = PageBudget(PAGE_BYTES)
    share = budget.share()
    await share.take(SOON)
    share.close()
    share.close()
    assert budget.held_bytes == 0


async def test_clients_that_stop_reading_do_not_stop_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_hub, "_ROOM_SECONDS", SOON)
    hub = StreamHub()
    hub.budget = PageBudget(PAGE_BYTES)
    data = json.dumps({"text": "x" * 1024})
    count = 600

    def fill(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session("s1")])
        ended = TaskStatus.SUCCEEDED
        tx.tasks.insert([a_task("t", session_id="s1", status=ended, finished_at=NOW, stream_length=count)])
        tx.events.insert([EventRecord("t", n, "E", data, n == count - 1) for n in range(count)])

    async with await SQLiteStateStore.connect("sqlite:///:memory:") as store, AsyncExitStack() as stack:
        await store.transact(fill)
        for _ in range(4):
            stalled = follow(store, hub, "t")
            await stack.enter_async_context(aclosing(stalled))  # type: ignore[type-var]
            assert await anext(stalled)
        assert hub.budget.take() == 0
        pages = [page async for page in follow(store, hub, "t")]
        assert [event.position for page in pages for event in page] == [*range(count)]
        assert max(map(len, pages)) <= TINY_PAGE_BYTES // 1024 + 1
    assert hub.budget.held_bytes == 0
