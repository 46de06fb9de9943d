"""What every state store must do, as tests to inherit.

A backend's tests are one class:

```python
class TestMyStore(StateStoreContract):
    store_type = MyStateStore

    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return f"my:///{tmp_path}/store"
```
"""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
import pytest_asyncio

from llama_deploy.errors import ConflictError, UnavailableError
from llama_deploy.state_stores.base import (
    EventRecord,
    InboxRecord,
    OutboxRecord,
    ServiceRecord,
    SessionRecord,
    StateStore,
    StoreTransaction,
    TaskRecord,
)
from llama_deploy.testing.records import NOW, a_session, a_task, an_instance
from llama_deploy.types import SessionPolicy, TaskStatus

_MANY = 10_000
_PATIENCE_SECONDS = 30.0


def _ids(tasks: Sequence[TaskRecord]) -> list[str]:
    return [task.task_id for task in tasks]


@pytest.mark.asyncio
class StateStoreContract:
    """The behaviour that `llama_deploy.state_stores.base` promises. Needs pytest and pytest-asyncio."""

    store_type: ClassVar[type[StateStore]]
    outlives_close: ClassVar[bool] = True
    """Whether what was stored is there after the store was closed and opened again."""

    @pytest.fixture
    def uri(self) -> str:
        """Return the address of an empty store; the same within a test."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def store(self, uri: str) -> AsyncIterator[StateStore]:
        """Return an open, empty store."""
        async with await self.store_type.connect(uri) as store:
            yield store

    # -- transactions

    async def test_the_value_of_the_work_is_returned(self, store: StateStore) -> None:
        assert await store.transact(lambda _: "written") == "written"
        assert await store.read(lambda _: "read") == "read"

    async def test_work_that_raises_leaves_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session()])
            tx.insert_tasks([a_task()])
            tx.insert_outbox([OutboxRecord("m1", "topic", "message")])
            raise LookupError("changed my mind")

        with pytest.raises(LookupError, match="changed my mind"):
            await store.transact(work)
        assert await store.read(lambda tx: (tx.list_sessions(), tx.load_tasks(["t1"]), tx.load_outbox())) == (
            [],
            {},
            [],
        )

    async def test_the_store_works_on_after_work_that_raised(self, store: StateStore) -> None:
        def work(_: StoreTransaction) -> None:
            raise LookupError

        for attempt in (store.transact, store.read):
            with pytest.raises(LookupError):
                await attempt(work)
        await store.transact(lambda tx: tx.insert_sessions([a_session()]))
        assert await store.read(lambda tx: tx.list_sessions()) == [a_session()]

    async def test_a_key_that_exists_is_a_conflict_and_leaves_nothing(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.insert_tasks([a_task("t1")]))
        with pytest.raises(ConflictError):
            await store.transact(lambda tx: tx.insert_tasks([a_task("t2"), a_task("t1")]))
        assert set(await store.read(lambda tx: tx.load_tasks(["t1", "t2"]))) == {"t1"}

    async def test_work_sees_what_it_wrote(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> dict[str, SessionRecord]:
            tx.insert_sessions([a_session()])
            return tx.load_sessions(["s1"])

        assert await store.transact(work) == {"s1": a_session()}

    async def test_a_read_does_not_see_a_transaction_under_way(self, store: StateStore) -> None:
        inserted = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on = threading.Event()

        def write(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session()])
            loop.call_soon_threadsafe(inserted.set)
            assert go_on.wait(_PATIENCE_SECONDS)

        writing = asyncio.create_task(store.transact(write))
        try:
            await asyncio.wait_for(inserted.wait(), _PATIENCE_SECONDS)
            reading = asyncio.create_task(store.read(lambda tx: tx.list_sessions()))
            # A store without concurrent readers answers only after the transaction: it has then ended.
            await asyncio.wait([reading], timeout=0.2)
            seen_meanwhile = reading.result() if reading.done() else []
        finally:
            go_on.set()
        await writing
        await reading
        assert seen_meanwhile == []
        assert await store.read(lambda tx: tx.list_sessions()) == [a_session()]

    async def test_a_read_is_one_snapshot(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.insert_sessions([a_session()]))

        def work(tx: StoreTransaction) -> tuple[list[SessionRecord], list[SessionRecord]]:
            before = tx.list_sessions()
            writing = asyncio.run_coroutine_threadsafe(
                store.transact(lambda tx: tx.insert_sessions([a_session("s2")])), loop
            )
            # Where readers and the writer are one, the write follows the read.
            with contextlib.suppress(TimeoutError):
                writing.result(timeout=0.2)
            return before, tx.list_sessions()

        loop = asyncio.get_running_loop()
        before, after = await store.read(work)
        assert before == after == [a_session()]

    async def test_concurrent_transactions_lose_nothing(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.insert_sessions([a_session()]))

        def increment(tx: StoreTransaction) -> None:
            session = tx.load_sessions(["s1"])["s1"]
            tx.update_sessions([replace(session, version=session.version + 1)])

        await asyncio.gather(*(store.transact(increment) for _ in range(200)))
        assert (await store.read(lambda tx: tx.load_sessions(["s1"])))["s1"].version == 200

    async def test_a_cancelled_caller_leaves_whole_transactions(self, store: StateStore) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        go_on = threading.Event()

        def write(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session("s1")])
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(_PATIENCE_SECONDS)
            tx.insert_sessions([a_session("s2")])

        writing = asyncio.create_task(store.transact(write))
        await asyncio.wait_for(begun.wait(), _PATIENCE_SECONDS)
        writing.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await store.transact(lambda _: None)
        assert len(await store.read(lambda tx: tx.list_sessions())) in (0, 2)

    # -- opening and closing

    async def test_what_was_stored_outlives_close(self, uri: str) -> None:
        if not self.outlives_close:
            pytest.skip("this store keeps nothing after close")
        async with await self.store_type.connect(uri) as store:
            await store.transact(lambda tx: (tx.insert_sessions([a_session()]), tx.insert_tasks([a_task()])))
        async with await self.store_type.connect(uri) as store:
            found = await store.read(lambda tx: (tx.list_sessions(), tx.session_tasks(["s1"])))
        assert found == ([a_session()], [a_task()])

    async def test_close_finishes_what_is_under_way_and_is_idempotent(self, store: StateStore) -> None:
        async def write(session_id: str) -> None:
            await store.transact(lambda tx: tx.insert_sessions([a_session(session_id)]))

        writing = [asyncio.create_task(write(f"s{n}")) for n in range(10)]
        await asyncio.gather(*writing[:1])
        await asyncio.gather(store.close(), store.close())
        await asyncio.wait_for(asyncio.gather(*writing), _PATIENCE_SECONDS)
        await store.close()

    async def test_a_closed_store_is_unavailable(self, store: StateStore) -> None:
        await store.close()
        for call in (store.transact, store.read):
            with pytest.raises(UnavailableError, match="closed"):
                await call(lambda tx: tx.list_sessions())

    # -- sessions

    async def test_sessions_come_back_as_they_were_stored(self, store: StateStore) -> None:
        session = SessionRecord("s1", SessionPolicy.INTERRUPT, '{"a": "ä\\u0000😀"}', 2**40, NOW)
        await store.transact(lambda tx: tx.insert_sessions([session]))
        assert await store.read(lambda tx: tx.load_sessions(["s1", "s1", "unknown"])) == {"s1": session}

    async def test_a_session_is_updated_but_for_its_creation(self, store: StateStore) -> None:
        changed = SessionRecord("s1", SessionPolicy.REJECT, '{"n": 1}', 1, NOW + timedelta(days=1))
        unknown = a_session("unknown")

        def work(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session(), a_session("s2")])
            tx.update_sessions([changed, unknown])

        await store.transact(work)
        expected = [replace(changed, created_at=NOW), a_session("s2")]
        assert await store.read(lambda tx: tx.list_sessions()) == expected

    async def test_sessions_are_listed_in_pages(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.insert_sessions([a_session(f"s{n}") for n in (3, 1, 2, 4)]))
        first = await store.read(lambda tx: tx.list_sessions(limit=3))
        second = await store.read(lambda tx: tx.list_sessions(after="s3", limit=3))
        assert [session.session_id for session in first] == ["s1", "s2", "s3"]
        assert [session.session_id for session in second] == ["s4"]

    async def test_deleting_a_session_deletes_all_that_is_its_own(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session("s1"), a_session("s2")])
            tx.insert_tasks([a_task("t1", session_id="s1"), a_task("t2", session_id="s2")])
            tx.insert_events([EventRecord("t1", 0, "E", "{}"), EventRecord("t2", 0, "E", "{}")])
            tx.insert_inbox([InboxRecord("t1", 1, "{}"), InboxRecord("t2", 1, "{}")])

        def look(tx: StoreTransaction) -> tuple[object, ...]:
            return (
                [session.session_id for session in tx.list_sessions()],
                sorted(tx.load_tasks(["t1", "t2"])),
                [len(tx.load_events(task_id)) for task_id in ("t1", "t2")],
                [entry.task_id for entry in tx.load_inbox(["t1", "t2"])],
            )

        await store.transact(fill)
        await store.transact(lambda tx: tx.delete_sessions(["s1", "unknown"]))
        assert await store.read(look) == (["s2"], ["t2"], [0, 1], ["t2"])

    # -- tasks

    async def test_tasks_come_back_as_they_were_stored(self, store: StateStore) -> None:
        full = TaskRecord(
            task_id="full",
            session_id="s1",
            service_name="greeter",
            input='{"x": [1, 2]}',
            status=TaskStatus.TIMED_OUT,
            created_at=NOW,
            max_attempts=7,
            attempt=5,
            losses=4,
            instance_id="i1",
            token="secret",  # noqa: S106 - a value to compare
            claimed_at=NOW + timedelta(microseconds=1),
            redispatch_at=NOW + timedelta(microseconds=2),
            dispatches=3,
            stream_length=2**40,
            attempt_events=6,
            inbox_length=8,
            cancel_requested=True,
            finished_at=NOW + timedelta(days=40_000),
            result='{"status": "timed_out"}',
        )
        await store.transact(lambda tx: tx.insert_tasks([full, a_task("plain")]))
        found = await store.read(lambda tx: tx.load_tasks(["plain", "full", "unknown"]))
        assert found == {"full": full, "plain": a_task("plain")}

    async def test_a_time_in_another_zone_is_the_same_time(self, store: StateStore) -> None:
        elsewhere = replace(
            a_session(), created_at=datetime.fromisoformat("2026-02-03T06:05:06.789012+02:00")
        )
        await store.transact(lambda tx: tx.insert_sessions([elsewhere]))
        [found] = await store.read(lambda tx: tx.list_sessions())
        assert found.created_at == NOW
        assert found.created_at.tzinfo is UTC

    async def test_a_task_is_updated_but_for_what_never_changes(self, store: StateStore) -> None:
        changed = TaskRecord(
            task_id="t1",
            session_id="other",
            service_name="other",
            input="other",
            created_at=NOW + timedelta(days=1),
            status=TaskStatus.RUNNING,
            max_attempts=9,
            attempt=2,
            losses=1,
            instance_id="i1",
            token="secret",  # noqa: S106 - a value to compare
            claimed_at=NOW,
            redispatch_at=NOW,
            dispatches=2,
            stream_length=3,
            attempt_events=4,
            inbox_length=5,
            cancel_requested=True,
            finished_at=NOW,
            result="{}",
        )
        first = a_task("t1")

        def work(tx: StoreTransaction) -> None:
            tx.insert_tasks([first, a_task("t2")])
            tx.update_tasks([changed, a_task("unknown")])

        await store.transact(work)
        expected = replace(
            changed,
            session_id=first.session_id,
            service_name=first.service_name,
            input=first.input,
            created_at=first.created_at,
        )
        found = await store.read(lambda tx: tx.load_tasks(["t1", "t2", "unknown"]))
        assert found == {"t1": expected, "t2": a_task("t2")}

    async def test_the_tasks_of_sessions_come_in_the_order_of_insertion(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.insert_tasks([a_task("c", session_id="s2"), a_task("a", session_id="s1")])
            tx.insert_tasks([a_task("b", session_id="s1"), a_task("x", session_id="s3")])
            tx.insert_tasks([a_task("d", session_id="s2")])
            tx.update_tasks([a_task("a", status=TaskStatus.RUNNING)])

        await store.transact(work)
        found = await store.read(lambda tx: tx.session_tasks(["s1", "s2", "unknown"]))
        assert _ids(found) == ["c", "a", "b", "d"]

    async def test_open_tasks_are_those_that_have_not_ended(self, store: StateStore) -> None:
        await store.transact(
            lambda tx: tx.insert_tasks([a_task(status.value, status=status) for status in TaskStatus])
        )
        found = await store.read(lambda tx: tx.session_tasks(["s1"], open_only=True))
        assert _ids(found) == ["pending", "queued", "running"]

    async def test_the_tasks_of_instances_are_those_that_run_there(self, store: StateStore) -> None:
        running = TaskStatus.RUNNING
        await store.transact(
            lambda tx: tx.insert_tasks(
                [
                    a_task("b", status=running, instance_id="i2"),
                    a_task("a", status=running, instance_id="i1"),
                    a_task("ended", status=TaskStatus.FAILED, instance_id="i1"),
                    a_task("elsewhere", status=running, instance_id="i3"),
                    a_task("queued", status=TaskStatus.QUEUED),
                ]
            )
        )
        assert _ids(await store.read(lambda tx: tx.instance_tasks(["i1", "i2", "unknown"]))) == ["b", "a"]

    async def test_queued_tasks_come_by_their_dispatch(self, store: StateStore) -> None:
        def queued(task_id: str, seconds: int | None) -> TaskRecord:
            at = None if seconds is None else NOW + timedelta(seconds=seconds)
            return a_task(task_id, status=TaskStatus.QUEUED, redispatch_at=at)

        running = a_task("running", status=TaskStatus.RUNNING, redispatch_at=NOW)
        tasks = [
            queued("late", 9),
            queued("early", 1),
            queued("never", None),
            running,
            queued("early too", 1),
        ]
        await store.transact(lambda tx: tx.insert_tasks(tasks))
        assert _ids(await store.read(lambda tx: tx.queued_tasks())) == ["never", "early", "early too", "late"]
        assert _ids(await store.read(lambda tx: tx.queued_tasks(limit=2))) == ["never", "early"]
        before = NOW + timedelta(seconds=9)
        found = await store.read(lambda tx: tx.queued_tasks(due_before=before))
        assert _ids(found) == ["early", "early too"]
        assert _ids(await store.read(lambda tx: tx.queued_tasks(due_before=before, limit=1))) == ["early"]

    # -- event streams and inboxes

    async def test_events_are_read_from_a_cursor(self, store: StateStore) -> None:
        events = [EventRecord("t1", n, "Progress", f'{{"n": {n}}}', terminal=n == 4) for n in range(5)]
        other = EventRecord("t2", 0, "Progress", "{}")
        await store.transact(lambda tx: tx.insert_events([*reversed(events), other]))
        assert await store.read(lambda tx: tx.load_events("t1")) == events
        assert await store.read(lambda tx: tx.load_events("t1", after=1, limit=2)) == events[2:4]
        assert await store.read(lambda tx: tx.load_events("t1", after=4)) == []
        assert await store.read(lambda tx: tx.load_events("unknown")) == []

    async def test_inboxes_are_read_in_order(self, store: StateStore) -> None:
        entries = [InboxRecord(task_id, seq, f'"{seq}"') for task_id in ("t1", "t2") for seq in range(1, 13)]
        await store.transact(lambda tx: tx.insert_inbox([*reversed(entries), InboxRecord("t3", 1, "{}")]))
        assert await store.read(lambda tx: tx.load_inbox(["t2", "t1", "unknown"])) == entries

    # -- outbox

    async def test_the_outbox_is_first_in_first_out(self, store: StateStore) -> None:
        messages = [OutboxRecord(message_id, f"topic.{message_id}", "{}") for message_id in "cab"]
        await store.transact(lambda tx: tx.insert_outbox(messages))
        assert await store.read(lambda tx: tx.load_outbox(limit=2)) == messages[:2]
        await store.transact(lambda tx: tx.delete_outbox(["c", "a", "unknown"]))
        late = OutboxRecord("late", "topic", "{}")
        await store.transact(lambda tx: tx.insert_outbox([late]))
        assert await store.read(lambda tx: tx.load_outbox()) == [messages[2], late]

    # -- services and instances

    async def test_services_are_put_over_those_of_the_same_name(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.put_services([ServiceRecord("a", "1"), ServiceRecord("b", "1")]))
        await store.transact(lambda tx: tx.put_services([ServiceRecord("b", "2"), ServiceRecord("c", "2")]))
        everything = {name: ServiceRecord(name, definition) for name, definition in ("a1", "b2", "c2")}
        assert await store.read(lambda tx: tx.load_services()) == everything
        named = await store.read(lambda tx: tx.load_services(["b", "unknown"]))
        assert named == {"b": ServiceRecord("b", "2")}
        assert await store.read(lambda tx: tx.load_services([])) == {}

    async def test_deleting_a_service_deletes_its_instances(self, store: StateStore) -> None:
        other = an_instance("i2", service_name="other")

        def work(tx: StoreTransaction) -> None:
            tx.put_services([ServiceRecord("greeter", "{}"), ServiceRecord("other", "{}")])
            tx.put_instances([an_instance("i1"), other])
            tx.delete_services(["greeter", "unknown"])

        await store.transact(work)
        assert set(await store.read(lambda tx: tx.load_services())) == {"other"}
        assert await store.read(lambda tx: tx.load_instances()) == [other]

    async def test_instances_are_put_over_those_of_the_same_id(self, store: StateStore) -> None:
        later = replace(
            an_instance(), host="127.0.0.1", port=65535, lease_expires_at=NOW + timedelta(hours=1)
        )
        await store.transact(lambda tx: tx.put_instances([an_instance(), an_instance("i2")]))
        await store.transact(lambda tx: tx.put_instances([later]))
        assert await store.read(lambda tx: tx.load_instances()) == [later, an_instance("i2")]

    async def test_instances_are_filtered_by_service_and_id(self, store: StateStore) -> None:
        records = [an_instance("i3"), an_instance("i1"), an_instance("i2", service_name="other")]
        await store.transact(lambda tx: tx.put_instances(records))

        async def found(
            *, service_names: list[str] | None = None, instance_ids: list[str] | None = None
        ) -> list[str]:
            loaded = await store.read(
                lambda tx: tx.load_instances(service_names=service_names, instance_ids=instance_ids)
            )
            return [instance.instance_id for instance in loaded]

        assert await found() == ["i1", "i2", "i3"]
        assert await found(service_names=["greeter", "unknown"]) == ["i1", "i3"]
        assert await found(instance_ids=["i3", "i2", "unknown"]) == ["i2", "i3"]
        assert await found(service_names=["greeter"], instance_ids=["i2", "i3"]) == ["i3"]
        assert await found(service_names=[]) == []
        assert await found(instance_ids=[]) == []

    async def test_deleting_instances_ignores_unknown_ones(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.put_instances([an_instance("i1"), an_instance("i2")]))
        await store.transact(lambda tx: tx.delete_instances(["i1", "unknown"]))
        assert await store.read(lambda tx: tx.load_instances()) == [an_instance("i2")]

    # -- many and none

    async def test_nothing_is_done_for_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> tuple[object, ...]:
            tx.insert_sessions([])
            tx.update_sessions([])
            tx.delete_sessions([])
            tx.insert_tasks([])
            tx.update_tasks([])
            tx.insert_events([])
            tx.insert_inbox([])
            tx.insert_outbox([])
            tx.delete_outbox([])
            tx.put_services([])
            tx.delete_services([])
            tx.put_instances([])
            tx.delete_instances([])
            return (
                tx.load_sessions([]),
                tx.load_tasks([]),
                tx.session_tasks([]),
                tx.instance_tasks([]),
                tx.load_inbox([]),
            )

        assert await store.transact(work) == ({}, {}, [], [], [])

    async def test_many_rows_in_one_transaction(self, store: StateStore) -> None:
        # Every session has two tasks far apart, so that order is kept across the statements of one call.
        names = [f"{n:05}" for n in range(_MANY)]
        sessions = [f"s{n % (_MANY // 2):05}" for n in range(_MANY)]
        tasks = [
            a_task(name, session_id=session, status=TaskStatus.RUNNING, instance_id=session)
            for name, session in zip(names, sessions, strict=True)
        ]

        def fill(tx: StoreTransaction) -> None:
            tx.insert_sessions([a_session(session_id) for session_id in dict.fromkeys(sessions)])
            tx.insert_tasks(tasks)
            tx.insert_events([EventRecord(name, 0, "E", "{}") for name in names])
            tx.insert_inbox([InboxRecord(name, 1, "{}") for name in names])
            tx.insert_outbox([OutboxRecord(name, "topic", "{}") for name in names])
            tx.update_tasks([replace(task, attempt=2) for task in tx.load_tasks(names).values()])

        await store.transact(fill)
        expected = [replace(task, attempt=2) for task in tasks]
        assert await store.read(lambda tx: tx.session_tasks(sessions)) == expected
        assert await store.read(lambda tx: tx.instance_tasks(sessions)) == expected
        assert len(await store.read(lambda tx: tx.load_inbox(names))) == _MANY
        assert len(await store.read(lambda tx: tx.load_outbox(limit=2 * _MANY))) == _MANY

        def empty(tx: StoreTransaction) -> None:
            tx.delete_outbox(names)
            tx.delete_sessions(sessions)

        await store.transact(empty)
        left = await store.read(
            lambda tx: (tx.load_outbox(), tx.list_sessions(), tx.load_tasks(names), tx.load_events("00000"))
        )
        assert left == ([], [], {}, [])
