"""Many rows at a time, and none."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
)
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

_MANY = 10_000


class QuantityTests(StoreTests):
    """A store works on any number of rows at a time."""

    async def test_nothing_is_done_for_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> tuple[object, ...]:
            tx.sessions.insert([])
            tx.sessions.update([])
            tx.sessions.delete([])
            tx.tasks.insert([])
            tx.tasks.update([])
            tx.tasks.change([])
            tx.events.insert([])
            tx.inbox.insert([])
            tx.inbox.consume([])
            tx.runs.put([])
            tx.runs.insert_journal([])
            tx.runs.trim_journal({})
            tx.runs.delete([])
            tx.outbox.insert([])
            tx.outbox.delete([])
            tx.services.put([])
            tx.services.delete([])
            tx.instances.put([])
            tx.instances.delete([])
            return (
                tx.sessions.load([]),
                tx.tasks.load([]),
                tx.tasks.of_sessions([]),
                tx.tasks.of_instances([]),
                tx.inbox.load([]),
                tx.inbox.known_keys([]),
                tx.runs.load([]),
                tx.runs.load_journal([]),
            )

        assert await store.transact(work) == ({}, {}, [], [], [], set(), {}, [])

    async def test_many_rows_in_one_transaction(self, store: StateStore) -> None:
        # Every session has two tasks far apart, so that order is kept across the statements of one call.
        names = [f"{n:05}" for n in range(_MANY)]
        sessions = [f"s{n % (_MANY // 2):05}" for n in range(_MANY)]
        tasks = [
            a_task(name, session_id=session, status=TaskStatus.RUNNING, instance_id=session)
            for name, session in zip(names, sessions, strict=True)
        ]

        def fill(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session(session_id) for session_id in dict.fromkeys(sessions)])
            tx.tasks.insert(tasks)
            tx.events.insert([EventRecord(name, 0, "E", "{}") for name in names])
            tx.inbox.insert([InboxRecord(name, 1, "{}", "key") for name in names])
            tx.runs.put([RunHeadRecord(name, "f", "1") for name in names])
            tx.runs.insert_journal([JournalRecord(name, seq, "{}") for name in names for seq in (0, 1)])
            tx.runs.trim_journal(dict.fromkeys(names, 1))
            tx.outbox.insert([OutboxRecord(name, "topic", "{}") for name in names])
            tx.tasks.update([task._replace(attempt=2) for task in tx.tasks.load(names).values()])

        await store.transact(fill)
        expected = [task._replace(attempt=2) for task in tasks]
        assert await store.read(lambda tx: tx.tasks.of_sessions(sessions)) == expected
        assert await store.read(lambda tx: tx.tasks.of_instances(sessions)) == expected
        assert len(await store.read(lambda tx: tx.inbox.load(names))) == _MANY
        assert len(await store.read(lambda tx: tx.runs.load(names))) == _MANY
        assert len(await store.read(lambda tx: tx.runs.load_journal(names))) == _MANY
        few = [(name, "key") for name in names[:1000]]
        assert await store.read(lambda tx: tx.inbox.known_keys(few)) == set(few)
        assert len(await store.read(lambda tx: tx.outbox.load(limit=2 * _MANY))) == _MANY

        def empty(tx: StoreTransaction) -> None:
            tx.outbox.delete(names)
            tx.sessions.delete(sessions)

        await store.transact(empty)
        left = await store.read(
            lambda tx: (
                tx.outbox.load(),
                tx.sessions.page(),
                tx.tasks.load(names),
                tx.events.load("00000"),
                tx.runs.load(names),
                tx.runs.load_journal(names),
            )
        )
        assert left == ({}, [], {}, [], {}, [])
