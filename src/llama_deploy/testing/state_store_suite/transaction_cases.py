"""Transactions, and opening and closing."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import threading

import pytest

from llama_deploy.errors import ConflictError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import OutboxRecord, SessionRecord
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests

_PATIENCE_SECONDS = 30.0


class TransactionTests(StoreTests):
    """A store does all or nothing, and keeps it."""

    # -- transactions

    async def test_the_value_of_the_work_is_returned(self, store: StateStore) -> None:
        assert await store.transact(lambda _: "written") == "written"
        assert await store.read(lambda _: "read") == "read"

    async def test_work_that_raises_leaves_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session()])
            tx.tasks.insert([a_task()])
            tx.outbox.insert([OutboxRecord("m1", "topic", "message")])
            raise LookupError("changed my mind")

        with pytest.raises(LookupError, match="changed my mind"):
            await store.transact(work)
        assert await store.read(lambda tx: (tx.sessions.page(), tx.tasks.load(["t1"]), tx.outbox.load())) == (
            [],
            {},
            {},
        )

    async def test_the_store_works_on_after_work_that_raised(self, store: StateStore) -> None:
        def work(_: StoreTransaction) -> None:
            raise LookupError

        for attempt in (store.transact, store.read):
            with pytest.raises(LookupError):
                await attempt(work)
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))
        assert await store.read(lambda tx: tx.sessions.page()) == [a_session()]

    async def test_a_key_that_exists_is_a_conflict_and_leaves_nothing(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.tasks.insert([a_task("t1")]))
        with pytest.raises(ConflictError):
            await store.transact(lambda tx: tx.tasks.insert([a_task("t2"), a_task("t1")]))
        assert set(await store.read(lambda tx: tx.tasks.load(["t1", "t2"]))) == {"t1"}

    async def test_work_sees_what_it_wrote(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> dict[str, SessionRecord]:
            tx.sessions.insert([a_session()])
            return tx.sessions.load(["s1"])

        assert await store.transact(work) == {"s1": a_session()}

    async def test_a_read_does_not_see_a_transaction_under_way(self, store: StateStore) -> None:
        inserted = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on = threading.Event()

        def write(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session()])
            loop.call_soon_threadsafe(inserted.set)
            assert self.wait_in_work(go_on.is_set, seconds=_PATIENCE_SECONDS)

        writing = asyncio.create_task(store.transact(write))
        try:
            await asyncio.wait_for(inserted.wait(), _PATIENCE_SECONDS)
            reading = asyncio.create_task(store.read(lambda tx: tx.sessions.page()))
            # A store without concurrent readers answers only after the transaction: it has then ended.
            await asyncio.wait([reading], timeout=0.2)
            seen_meanwhile = reading.result() if reading.done() else []
        finally:
            go_on.set()
        await writing
        await reading
        assert seen_meanwhile == []
        assert await store.read(lambda tx: tx.sessions.page()) == [a_session()]

    async def test_a_read_is_one_snapshot(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))

        def work(tx: StoreTransaction) -> tuple[list[SessionRecord], list[SessionRecord]]:
            before = tx.sessions.page()
            writing = asyncio.run_coroutine_threadsafe(
                store.transact(lambda tx: tx.sessions.insert([a_session("s2")])), loop
            )
            # Where readers and the writer are one, the write follows the read.
            self.wait_in_work(writing.done, seconds=0.2)
            return before, tx.sessions.page()

        loop = asyncio.get_running_loop()
        before, after = await store.read(work)
        assert before == after == [a_session()]

    async def test_concurrent_transactions_lose_nothing(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))

        def increment(tx: StoreTransaction) -> None:
            session = tx.sessions.load(["s1"])["s1"]
            tx.sessions.update([session._replace(version=session.version + 1)])

        await asyncio.gather(*(store.transact(increment) for _ in range(200)))
        assert (await store.read(lambda tx: tx.sessions.load(["s1"])))["s1"].version == 200

    async def test_a_cancelled_caller_leaves_whole_transactions(self, store: StateStore) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on = threading.Event()

        def write(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session("s1")])
            loop.call_soon_threadsafe(begun.set)
            assert self.wait_in_work(go_on.is_set, seconds=_PATIENCE_SECONDS)
            tx.sessions.insert([a_session("s2")])

        writing = asyncio.create_task(store.transact(write))
        await asyncio.wait_for(begun.wait(), _PATIENCE_SECONDS)
        writing.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await store.transact(lambda _: None)
        assert len(await store.read(lambda tx: tx.sessions.page())) in (0, 2)

    # -- opening and closing

    async def test_what_was_stored_outlives_close(self, uri: str) -> None:
        if not self.outlives_close:
            pytest.skip("this store keeps nothing after close")
        async with await self.store_type.connect(uri) as store:
            await store.transact(lambda tx: (tx.sessions.insert([a_session()]), tx.tasks.insert([a_task()])))
        async with await self.store_type.connect(uri) as store:
            found = await store.read(lambda tx: (tx.sessions.page(), tx.tasks.of_sessions(["s1"])))
        assert found == ([a_session()], [a_task()])

    async def test_close_finishes_what_is_under_way_and_is_idempotent(self, store: StateStore) -> None:
        async def write(session_id: str) -> None:
            await store.transact(lambda tx: tx.sessions.insert([a_session(session_id)]))

        writing = [asyncio.create_task(write(f"s{n}")) for n in range(10)]
        await asyncio.gather(*writing[:1])
        await asyncio.gather(store.close(), store.close())
        await asyncio.wait_for(asyncio.gather(*writing), _PATIENCE_SECONDS)
        await store.close()

    async def test_a_check_writes_and_changes_nothing(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))
        await asyncio.gather(*(store.check_writable() for _ in range(3)))
        assert await store.read(lambda tx: tx.sessions.page()) == [a_session()]

    async def test_a_closed_store_is_unavailable(self, store: StateStore) -> None:
        await store.close()
        with pytest.raises(UnavailableError, match="closed"):
            await store.check_writable()
        for call in (store.transact, store.read):
            with pytest.raises(UnavailableError, match="closed"):
                await call(lambda tx: tx.sessions.page())
