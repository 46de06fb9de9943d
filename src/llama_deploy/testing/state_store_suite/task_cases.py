"""Sessions and tasks."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import (
    FIXED,
    PROGRESS,
    SUSPECT_DEATHS,
    EventRecord,
    InboxRecord,
    JournalRecord,
    RunHeadRecord,
    SessionRecord,
    TaskRecord,
)
from llama_deploy.testing.records import NOW, a_full_task, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import SessionPolicy, TaskStatus


def _ids(tasks: Sequence[TaskRecord]) -> list[str]:
    return [task.task_id for task in tasks]


class TaskTests(StoreTests):
    """A store keeps sessions and their tasks."""

    # -- sessions

    async def test_sessions_come_back_as_they_were_stored(self, store: StateStore) -> None:
        session = SessionRecord("s1", SessionPolicy.INTERRUPT, '{"a": "ä\\u0000😀"}', 2**40, NOW, NOW, "acme")
        await store.transact(lambda tx: tx.sessions.insert([session]))
        assert await store.read(lambda tx: tx.sessions.load(["s1", "s1", "unknown"])) == {"s1": session}

    async def test_a_session_is_updated_but_for_its_creation(self, store: StateStore) -> None:
        later = NOW + timedelta(days=1)
        changed = SessionRecord("s1", SessionPolicy.REJECT, '{"n": 1}', 1, later, later, "other")
        unknown = a_session("unknown")

        def work(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session(), a_session("s2")])
            tx.sessions.update([changed, unknown])

        await store.transact(work)
        expected = [changed._replace(created_at=NOW, tenant=""), a_session("s2")]
        assert await store.read(lambda tx: tx.sessions.page()) == expected

    async def test_sessions_are_listed_in_pages(self, store: StateStore) -> None:
        await store.transact(lambda tx: tx.sessions.insert([a_session(f"s{n}") for n in (3, 1, 2, 4)]))
        first = await store.read(lambda tx: tx.sessions.page(limit=3))
        second = await store.read(lambda tx: tx.sessions.page(after="s3", limit=3))
        assert [session.session_id for session in first] == ["s1", "s2", "s3"]
        assert [session.session_id for session in second] == ["s4"]

    async def test_deleting_a_session_deletes_all_that_is_its_own(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session("s1"), a_session("s2")])
            tx.tasks.insert([a_task("t1", session_id="s1"), a_task("t2", session_id="s2")])
            tx.events.insert([EventRecord("t1", 0, "E", "{}"), EventRecord("t2", 0, "E", "{}")])
            tx.inbox.insert([InboxRecord("t1", 1, "{}"), InboxRecord("t2", 1, "{}")])
            tx.runs.put([RunHeadRecord("t1", "f", "1"), RunHeadRecord("t2", "f", "1")])
            tx.runs.insert_journal([JournalRecord("t1", 0, "{}"), JournalRecord("t2", 0, "{}")])

        def look(tx: StoreTransaction) -> tuple[object, ...]:
            return (
                [session.session_id for session in tx.sessions.page()],
                sorted(tx.tasks.load(["t1", "t2"])),
                [len(tx.events.load(task_id)) for task_id in ("t1", "t2")],
                [entry.task_id for entry in tx.inbox.load(["t1", "t2"])],
                list(tx.runs.load(["t1", "t2"])),
                [entry.task_id for entry in tx.runs.load_journal(["t1", "t2"])],
            )

        await store.transact(fill)
        await store.transact(lambda tx: tx.sessions.delete(["s1", "unknown"]))
        assert await store.read(look) == (["s2"], ["t2"], [0, 1], ["t2"], ["t2"], ["t2"])

    # -- tasks

    async def test_tasks_come_back_as_they_were_stored(self, store: StateStore) -> None:
        full = a_full_task("full")._replace(
            priority=-5, stream_length=2**40, finished_at=NOW + timedelta(days=40_000)
        )
        await store.transact(lambda tx: tx.tasks.insert([full, a_task("plain")]))
        found = await store.read(lambda tx: tx.tasks.load(["plain", "full", "unknown"]))
        assert found == {"full": full, "plain": a_task("plain")}

    async def test_a_time_in_another_zone_is_the_same_time(self, store: StateStore) -> None:
        elsewhere = a_session()._replace(
            created_at=datetime.fromisoformat("2026-02-03T06:05:06.789012+02:00")
        )
        await store.transact(lambda tx: tx.sessions.insert([elsewhere]))
        [found] = await store.read(lambda tx: tx.sessions.page())
        assert found.created_at == NOW
        assert found.created_at.tzinfo is UTC

    async def test_a_task_is_updated_but_for_what_never_changes(self, store: StateStore) -> None:
        changed = a_full_task("t1")
        first = a_task("t1")

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([first, a_task("t2")])
            tx.tasks.update([changed, a_task("unknown")])

        await store.transact(work)
        fixed: dict[str, Any] = {name: getattr(first, name) for name in FIXED}
        assert all(getattr(changed, name) != value for name, value in fixed.items())
        expected = changed._replace(**fixed)
        found = await store.read(lambda tx: tx.tasks.load(["t1", "t2", "unknown"]))
        assert found == {"t1": expected, "t2": a_task("t2")}

    async def test_progress_is_updated_alone(self, store: StateStore) -> None:
        first, changed = a_task("t1"), a_full_task("t1")
        progress: dict[str, Any] = {name: getattr(changed, name) for name in PROGRESS}
        assert all(getattr(first, name) != value for name, value in progress.items())

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([first, a_task("t2")])
            tx.tasks.update_progress([changed, a_task("unknown")])

        await store.transact(work)
        found = await store.read(lambda tx: tx.tasks.load(["t1", "t2", "unknown"]))
        assert found == {"t1": first._replace(**progress), "t2": a_task("t2")}

    async def test_the_tasks_of_sessions_come_in_the_order_of_insertion(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([a_task("c", session_id="s2"), a_task("a", session_id="s1")])
            tx.tasks.insert([a_task("b", session_id="s1"), a_task("x", session_id="s3")])
            tx.tasks.insert([a_task("d", session_id="s2")])
            tx.tasks.update([a_task("a", status=TaskStatus.RUNNING)])

        await store.transact(work)
        found = await store.read(lambda tx: tx.tasks.of_sessions(["s1", "s2", "unknown"]))
        assert _ids(found) == ["c", "a", "b", "d"]
        names = await store.read(lambda tx: tx.tasks.ids_of_sessions(["s1", "s2", "unknown"]))
        assert names == {"s1": ["a", "b"], "s2": ["c", "d"]}

    async def test_tasks_that_wait_for_the_orchestrator_come_by_since_when(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert(
                [
                    a_task("second", redispatch_at=NOW + timedelta(seconds=1)),
                    a_task("first", redispatch_at=NOW),
                    a_task("not yet"),
                    a_task("queued", status=TaskStatus.QUEUED, redispatch_at=NOW),
                ]
            )

        await store.transact(work)
        assert _ids(await store.read(lambda tx: tx.tasks.unrouted())) == ["first", "second"]
        assert _ids(await store.read(lambda tx: tx.tasks.unrouted(limit=1))) == ["first"]
        early = await store.read(lambda tx: tx.tasks.unrouted(due_before=NOW + timedelta(seconds=1)))
        assert _ids(early) == ["first"]

    async def test_what_waits_for_a_service_is_found_and_counted(self, store: StateStore) -> None:
        queued = TaskStatus.QUEUED
        await store.transact(
            lambda tx: tx.tasks.insert(
                [
                    a_task("soon", status=queued, redispatch_at=NOW),
                    a_task("late", status=queued, redispatch_at=NOW + timedelta(hours=1)),
                    a_task("pending"),
                    a_task("running", status=TaskStatus.RUNNING),
                    a_task("sent on", status=queued, redispatch_at=NOW, routed_to="other"),
                ]
            )
        )
        assert _ids(await store.read(lambda tx: tx.tasks.queued_for("greeter"))) == ["late", "soon"]
        assert _ids(await store.read(lambda tx: tx.tasks.queued_for("greeter", limit=1))) == ["late"]
        assert _ids(await store.read(lambda tx: tx.tasks.queued_for("other"))) == ["sent on"]
        counts = await store.read(
            lambda tx: [tx.tasks.count_waiting(name) for name in ("greeter", "other", "unknown")]
        )
        assert counts == [3, 1, 0]

    async def test_open_tasks_are_those_that_have_not_ended(self, store: StateStore) -> None:
        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([a_task(status.value, status=status) for status in TaskStatus])
            ended = [a_task(status.value, status=status) for status in TaskStatus if status.is_terminal]
            tx.tasks.update([task._replace(finished_at=NOW) for task in ended])

        await store.transact(work)
        found = await store.read(lambda tx: tx.tasks.of_sessions(["s1"], open_only=True))
        assert _ids(found) == ["pending", "queued", "running", "waiting"]

    async def test_the_first_open_tasks_of_sessions_come_in_the_order_of_insertion(
        self, store: StateStore
    ) -> None:
        def work(tx: StoreTransaction) -> None:
            many = [a_task(f"t{n:03}", session_id="s1") for n in reversed(range(100))]
            tx.tasks.insert([*many, a_task("x", session_id="s2"), a_task("y", session_id="s2")])
            tx.tasks.update([a_task("t099", session_id="s1")._replace(finished_at=NOW)])

        await store.transact(work)
        few = await store.read(lambda tx: tx.tasks.first_open(["s2", "unknown"], limit=3))
        assert _ids(few) == ["x", "y"]
        found = await store.read(lambda tx: tx.tasks.first_open(["s1", "s2"], limit=3))
        assert _ids(found) == ["t098", "t097", "t096", "x", "y"]
        assert len(await store.transact(lambda tx: tx.tasks.first_open(["s1"], limit=1000))) == 99

    async def test_the_tasks_of_instances_are_those_that_run_there(self, store: StateStore) -> None:
        running = TaskStatus.RUNNING
        await store.transact(
            lambda tx: tx.tasks.insert(
                [
                    a_task("b", status=running, instance_id="i2"),
                    a_task("a", status=running, instance_id="i1"),
                    a_task("ended", status=TaskStatus.FAILED, instance_id="i1"),
                    a_task("elsewhere", status=running, instance_id="i3"),
                    a_task("queued", status=TaskStatus.QUEUED),
                ]
            )
        )
        assert _ids(await store.read(lambda tx: tx.tasks.of_instances(["i1", "i2", "unknown"]))) == ["b", "a"]
        counts = await store.read(lambda tx: tx.tasks.running_counts(["i1", "i2", "unknown"]))
        assert counts == {"i1": 1, "i2": 1}

    async def test_suspects_are_counted_by_the_service_that_is_to_run_them(self, store: StateStore) -> None:
        def suspect(task_id: str, **changes: Any) -> TaskRecord:
            return a_task(
                task_id, **{"status": TaskStatus.QUEUED, "deaths": SUSPECT_DEATHS, "dispatches": 1, **changes}
            )

        assert await store.read(lambda tx: tx.tasks.suspects()) == {}
        tasks = [
            suspect("one"),
            suspect("more deaths", deaths=SUSPECT_DEATHS + 3),
            suspect("elsewhere", service_name="other"),
            suspect("routed", service_name="other", routed_to="greeter"),
            suspect("not one", deaths=SUSPECT_DEATHS - 1),
            suspect("running", status=TaskStatus.RUNNING),
            suspect("delayed", dispatches=0),
        ]
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        assert await store.read(lambda tx: tx.tasks.suspects()) == {"greeter": 3, "other": 1}
        assert await store.transact(lambda tx: tx.tasks.suspects()) == {"greeter": 3, "other": 1}

    @pytest.mark.parametrize(
        ("method", "status", "field", "without_time"),
        [
            ("queued", TaskStatus.QUEUED, "redispatch_at", ["without"]),
            ("sleeping", TaskStatus.WAITING, "wake_at", []),
        ],
    )
    async def test_tasks_that_become_due_come_by_their_time(
        self, store: StateStore, method: str, status: TaskStatus, field: str, without_time: list[str]
    ) -> None:
        def task(task_id: str, seconds: float, status: TaskStatus = status) -> TaskRecord:
            time: dict[str, Any] = {field: NOW + timedelta(seconds=seconds)}
            return a_task(task_id, status=status)._replace(**time)

        async def found(**filters: Any) -> list[str]:
            return _ids(await store.read(lambda tx: getattr(tx.tasks, method)(**filters)))

        tasks = [
            task("late", 9),
            task("early", 1),
            a_task("without", status=status),
            task("running", 0, TaskStatus.RUNNING),
            task("early too", 1),
        ]
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        before = NOW + timedelta(seconds=9)
        assert await found() == [*without_time, "early", "early too", "late"]
        assert await found(limit=2) == [*without_time, "early", "early too"][:2]
        assert await found(due_before=before) == ["early", "early too"]
        assert await found(due_before=before, limit=1) == ["early"]
