"""Event streams of which a part is in packs."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from functools import partial

import pytest

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.event_packs import packed
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests

_EVENTS = [
    EventRecord("t1", n, "Progress", f'{{"n": {n}}}', terminal=n == 9, attempt=1, step_run=n % 2)
    for n in range(10)
]


def _pack(tx: StoreTransaction, *, count: int) -> None:
    """Pack the first events that are loose, onto the last pack."""
    packs = packed(tx.events.loose("t1", limit=count), onto=tx.events.last_pack("t1"))
    tx.events.put_packs(packs)


def _load(
    tx: StoreTransaction, *, after: int, limit: int = 1000, max_bytes: int | None = None
) -> list[EventRecord]:
    return tx.events.load("t1", after=after, limit=limit, max_bytes=max_bytes)


class PackTests(StoreTests):
    """A store reads events in packs as it reads others."""

    @pytest.mark.parametrize("pieces", [[4], [3, 3], [9], [4, 99]])
    async def test_a_packed_stream_is_read_from_any_cursor(
        self, store: StateStore, pieces: list[int]
    ) -> None:
        other = EventRecord("t2", 0, "Progress", "{}")
        await store.transact(lambda tx: tx.events.insert([*_EVENTS, other]))
        for count in pieces:
            await store.transact(partial(_pack, count=count))
        for after in range(-1, 10):
            rest = _EVENTS[after + 1 :]
            assert await store.read(partial(_load, after=after)) == rest
            assert await store.read(partial(_load, after=after, limit=3)) == rest[:3]
            assert await store.read(partial(_load, after=after, max_bytes=17)) == rest[:3]
        assert await store.read(lambda tx: tx.events.load("t2")) == [other]

    async def test_several_packs_follow_each_other(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.events.insert(_EVENTS))
        await store.transact(
            lambda tx: tx.events.put_packs(
                [*packed(_EVENTS[:3]), *packed(_EVENTS[3:5]), *packed(_EVENTS[5:8])]
            )
        )
        assert await store.read(lambda tx: tx.events.load("t1")) == _EVENTS
        assert await store.read(lambda tx: tx.events.load("t1", after=3)) == _EVENTS[4:]
        assert await store.read(lambda tx: tx.events.last_pack("t1")) == packed(_EVENTS[5:8])[0]
        assert await store.read(lambda tx: tx.events.loose("t1")) == _EVENTS[8:9]

    async def test_what_is_packed_is_loose_no_longer_and_the_last_event_is_never_loose(
        self, store: StateStore
    ) -> None:
        await store.transact(lambda tx: tx.events.insert(_EVENTS))
        assert await store.read(lambda tx: tx.events.last_pack("t1")) is None
        assert await store.read(lambda tx: tx.events.loose("t1")) == _EVENTS[:9]
        assert await store.read(lambda tx: tx.events.loose("t1", limit=2)) == _EVENTS[:2]
        assert await store.read(lambda tx: tx.events.loose("t1", max_bytes=9)) == _EVENTS[:2]
        await store.transact(lambda tx: _pack(tx, count=4))
        assert await store.read(lambda tx: tx.events.loose("t1")) == _EVENTS[4:9]
        await store.transact(lambda tx: _pack(tx, count=99))
        assert await store.read(lambda tx: tx.events.loose("t1")) == []

    async def test_a_stream_grows_after_it_was_packed(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.events.insert(_EVENTS[:4]))
        await store.transact(lambda tx: _pack(tx, count=99))
        assert await store.read(lambda tx: tx.events.load("t1", after=3)) == []
        await store.transact(lambda tx: tx.events.insert(_EVENTS[4:]))
        assert await store.read(lambda tx: tx.events.load("t1", after=1)) == _EVENTS[2:]

    async def test_packs_are_deleted_with_their_session(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await store.transact(lambda tx: tx.tasks.insert([a_task("t1", session_id="s1")]))
        await store.transact(lambda tx: tx.events.insert(_EVENTS))
        await store.transact(lambda tx: _pack(tx, count=5))
        await store.transact(lambda tx: tx.sessions.delete(["s1"]))
        assert await store.read(lambda tx: tx.events.load("t1")) == []
