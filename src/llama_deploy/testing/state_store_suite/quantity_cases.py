"""Many rows at a time, and none."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from dataclasses import replace

from llama_deploy.state_stores.base import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
    StateStore,
    StoreTransaction,
)
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

_MANY = 10_000


class QuantityTests(StoreTests):
    """A store works on any number of rows at a time."""

    async def test_nothing_is_done_for_nothing(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> tuple[object, ...]:
            tx.insert_sessions([])
            tx.update_sessions([])
            tx.delete_sessions([])
            tx.insert_tasks([])
            tx.update_tasks([])
            tx.update_progress([])
            tx.insert_events([])
            tx.insert_inbox([])
            tx.consume_inbox([])
            tx.put_runs([])
            tx.insert_journal([])
            tx.trim_journal({})
            tx.delete_runs([])
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
                tx.known_inbox_keys([]),
                tx.load_runs([]),
                tx.load_journal([]),
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
            tx.insert_sessions([a_session(session_id) for session_id in dict.fromkeys(sessions)])
            tx.insert_tasks(tasks)
            tx.insert_events([EventRecord(name, 0, "E", "{}") for name in names])
            tx.insert_inbox([InboxRecord(name, 1, "{}", "key") for name in names])
            tx.put_runs([RunHeadRecord(name, "f", "1") for name in names])
            tx.insert_journal([JournalRecord(name, seq, "{}") for name in names for seq in (0, 1)])
            tx.trim_journal(dict.fromkeys(names, 1))
            tx.insert_outbox([OutboxRecord(name, "topic", "{}") for name in names])
            tx.update_tasks([replace(task, attempt=2) for task in tx.load_tasks(names).values()])

        await store.transact(fill)
        expected = [replace(task, attempt=2) for task in tasks]
        assert await store.read(lambda tx: tx.session_tasks(sessions)) == expected
        assert await store.read(lambda tx: tx.instance_tasks(sessions)) == expected
        assert len(await store.read(lambda tx: tx.load_inbox(names))) == _MANY
        assert len(await store.read(lambda tx: tx.load_runs(names))) == _MANY
        assert len(await store.read(lambda tx: tx.load_journal(names))) == _MANY
        few = [(name, "key") for name in names[:1000]]
        assert await store.read(lambda tx: tx.known_inbox_keys(few)) == set(few)
        assert len(await store.read(lambda tx: tx.load_outbox(limit=2 * _MANY))) == _MANY

        def empty(tx: StoreTransaction) -> None:
            tx.delete_outbox(names)
            tx.delete_sessions(sessions)

        await store.transact(empty)
        left = await store.read(
            lambda tx: (
                tx.load_outbox(),
                tx.list_sessions(),
                tx.load_tasks(names),
                tx.load_events("00000"),
                tx.load_runs(names),
                tx.load_journal(names),
            )
        )
        assert left == ([], [], {}, [], {}, [])
