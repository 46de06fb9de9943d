"""Sessions and tasks."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import DEFERRED_BYTES, Deferred
from llama_deploy.state_stores.records import (
    FIXED,
    SUSPECT_DEATHS,
    EventRecord,
    InboxRecord,
    JournalRecord,
    RunHeadRecord,
    SavedStateRecord,
    SessionRecord,
    TaskRecord,
)
from llama_deploy.testing.records import NOW, a_full_task, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.json_values import utf8_bytes


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

    async def test_sessions_have_tags_policies_and_earlier_states(self, store: StateStore) -> None:
        tagged = [a_session(f"s{n}")._replace(tags='["a", "b"]' if n % 2 else '["b"]') for n in range(5)]
        saved = [SavedStateRecord("s1", version, f"{version}", NOW) for version in range(6)]

        def work(tx: StoreTransaction) -> None:
            tx.sessions.insert(tagged)
            for state in saved:
                tx.sessions.save_states([state], keep=3)

        await store.transact(work)

        async def ids(**filters: Any) -> list[str]:
            found = await store.read(lambda tx: tx.sessions.heads(limit=3, **filters))
            return [session.session_id for session in found]

        assert await ids(newest_first=False) == ["s0", "s1", "s2"]
        assert await ids(newest_first=True, after="s3") == ["s2", "s1", "s0"]
        assert await ids(newest_first=True, tag="a") == ["s3", "s1"]
        assert await ids(newest_first=False, tag="b", after="s2") == ["s3", "s4"]
        assert await ids(newest_first=False, tag="unknown") == []
        kept = await store.read(lambda tx: tx.sessions.saved_states("s1"))
        assert kept == saved[-3:]
        policies = await store.read(lambda tx: tx.sessions.policies(["s1", "unknown"]))
        assert policies == {"s1": SessionPolicy.ENQUEUE}
        await store.transact(lambda tx: tx.sessions.delete(["s1"]))
        assert await ids(newest_first=True, tag="a") == ["s3"]
        assert await store.read(lambda tx: tx.sessions.saved_states("s1")) == []

    async def test_the_sizes_of_the_tasks_of_a_session(self, store: StateStore) -> None:
        added = [a_task(f"t{n}", input="x" * n, result="y" * n if n else None) for n in range(4)]

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([*added, a_task("other", session_id="s2")])

        await store.transact(work)
        first = await store.read(lambda tx: tx.tasks.sizes_in_session("s1", limit=2))
        assert [(each.task_id, each.characters) for each in first] == [("t0", 0), ("t1", 2)]
        after = first[-1].created_at, first[-1].position
        rest = await store.read(lambda tx: tx.tasks.sizes_in_session("s1", after=after, limit=9))
        assert [(each.task_id, each.characters) for each in rest] == [("t2", 4), ("t3", 6)]

    async def test_large_values_are_deferred_in_lean_rows(self, store: StateStore) -> None:
        fits = '{"a": "' + "é" * ((DEFERRED_BYTES - 9) // 2) + '"}'
        large = f" {fits} "
        size = utf8_bytes(large)
        assert size > DEFERRED_BYTES >= utf8_bytes(fits)
        sessions = [a_session("s1")._replace(state=fits), a_session("s2")._replace(state=large)]
        tasks = [
            a_task("t1", input=fits, result=fits),
            a_task("t2", input=large, result=large),
            a_task("t3", input=large),
        ]

        def work(tx: StoreTransaction) -> None:
            tx.sessions.insert(sessions)
            tx.tasks.insert(tasks)

        await store.transact(work)
        lean = [
            tasks[0],
            tasks[1]._replace(input=Deferred(size), result=Deferred(size)),
            tasks[2]._replace(input=Deferred(size)),
        ]
        for read in (store.read, store.transact):
            found = await read(lambda tx: tx.tasks.load(["t1", "t2", "t3"], lean=True))
            assert [found[task.task_id] for task in tasks] == lean
            assert await read(lambda tx: tx.tasks.of_sessions(["s1"])) == lean
            assert await read(lambda tx: tx.sessions.load(["s1", "s2"], lean=True)) == {
                "s1": sessions[0],
                "s2": sessions[1]._replace(state=Deferred(size)),
            }
            whole = await read(lambda tx: tx.tasks.load(["t1", "t2", "t3"]))
            assert [whole[task.task_id] for task in tasks] == tasks

    async def test_a_deferred_value_is_not_overwritten(self, store: StateStore) -> None:
        large = '{"a": "' + "x" * DEFERRED_BYTES + '"}'
        await store.transact(lambda tx: tx.sessions.insert([a_session()._replace(state=large)]))
        await store.transact(lambda tx: tx.tasks.insert([a_task("t1", input=large, result=large)]))

        def work(tx: StoreTransaction) -> None:
            session, task = tx.sessions.load(["s1"], lean=True)["s1"], tx.tasks.load(["t1"], lean=True)["t1"]
            tx.sessions.update([session._replace(version=5)])
            tx.tasks.update([task._replace(attempt=7)])

        await store.transact(work)
        session, task = await store.read(lambda tx: (tx.sessions.load(["s1"]), tx.tasks.load(["t1"])))
        assert (session["s1"].state, session["s1"].version) == (large, 5)
        assert (task["t1"].input, task["t1"].result, task["t1"].attempt) == (large, large, 7)

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

    async def test_only_fields_that_differ_are_overwritten(self, store: StateStore) -> None:
        first = a_task("t1")

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([first, a_task("t2")])
            tx.tasks.change([(first, first._replace(attempt=7)), (a_task("t2"), a_task("t2"))])
            tx.tasks.change([(first, first._replace(losses=3, progress="half"))])
            tx.tasks.change([(a_task("unknown"), a_task("unknown", attempt=7))])

        await store.transact(work)
        found = await store.read(lambda tx: tx.tasks.load(["t1", "t2", "unknown"]))
        expected = first._replace(attempt=7, losses=3, progress="half")
        assert found == {"t1": expected, "t2": a_task("t2")}

    async def test_fields_can_become_none_again(self, store: StateStore) -> None:
        full = a_full_task("t1")
        nothing: dict[str, Any] = {
            name: None
            for name, value in a_task("t1")._asdict().items()
            if value is None and name not in FIXED
        }
        empty = full._replace(**nothing)

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert([full])
            tx.tasks.change([(full, empty)])

        await store.transact(work)
        assert (await store.read(lambda tx: tx.tasks.load(["t1"])))["t1"] == empty._replace(
            result=full.result
        )

    async def test_many_different_changes_are_stored(self, store: StateStore) -> None:
        names = [name for name in TaskRecord._fields if name not in {"task_id", "result", *FIXED}]
        pairs = list(itertools.combinations(names, 2))[:200]
        full = a_full_task()
        before = [a_task(f"t{number:03}") for number in range(len(pairs))]
        after = [
            task._replace(**{name: getattr(full, name) for name in pair})
            for task, pair in zip(before, pairs, strict=True)
        ]

        def work(tx: StoreTransaction) -> None:
            tx.tasks.insert(before)
            tx.tasks.change(zip(before, after, strict=True))

        await store.transact(work)
        found = await store.read(lambda tx: tx.tasks.load([task.task_id for task in before]))
        assert found == {task.task_id: task for task in after}

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

    async def test_how_long_tasks_are_queued_is_known_by_service(self, store: StateStore) -> None:
        assert await store.read(lambda tx: tx.tasks.queued_since()) == {}
        queued, second = TaskStatus.QUEUED, timedelta(seconds=1)
        tasks = [
            a_task("waits", status=TaskStatus.WAITING, status_changed_at=NOW - 9 * second),
            a_task("old, again", status=queued, created_at=NOW - 9 * second, status_changed_at=NOW),
            a_task("first", status=queued, status_changed_at=NOW - 2 * second),
            a_task("elsewhere", status=queued, service_name="other", status_changed_at=NOW - second),
        ]
        await store.transact(lambda tx: tx.tasks.insert(tasks))
        expected = {"greeter": NOW - 2 * second, "other": NOW - second}
        assert await store.read(lambda tx: tx.tasks.queued_since()) == expected

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

    async def test_retries_are_found_by_the_task_that_they_retry(self, store: StateStore) -> None:
        retries = {"t1": None, "t2": "t1", "t3": "t1", "t4": "t2", "t5": None}
        added = [
            a_task(task_id, retry_of=source, retry_from=source and "start")
            for task_id, source in retries.items()
        ]
        await store.transact(lambda tx: tx.tasks.insert(added))
        found = await store.read(lambda tx: tx.tasks.retries_of(["t1", "t2", "t3", "unknown"]))
        assert {source: sorted(ids) for source, ids in found.items()} == {"t1": ["t2", "t3"], "t2": ["t4"]}
