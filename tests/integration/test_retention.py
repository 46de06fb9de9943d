"""Ended tasks and their events go when their time is over; what is needed stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.maintenance import batch_pace, retention
from llama_deploy.control_plane.maintenance.batch_pace import ONE_WRITER
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.errors import (
    ConflictError,
    EventsExpiredError,
    InvalidRequestError,
    TaskRemovedError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import a_session, a_task
from llama_deploy.testing.state_store_suite.retention_cases import fill_tables, rows_of
from llama_deploy.types import TaskStatus, TaskSubmission
from llama_deploy.types.retention import PurgeRequest, RetentionRule
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.in_process import Stack, running_stack

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db") as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


def storage_of(store: StateStore, clock: Clock, **settings: Any) -> Storage:
    config = ControlPlaneConfig(**{f"retention_{name}": value for name, value in settings.items()})
    storage = Storage(store, config, removals=KnownRemovals(), clock=clock)
    storage.retention.pace.hurried = True
    return storage


def ended(
    task_id: str,
    *,
    days: float,
    status: TaskStatus = TaskStatus.SUCCEEDED,
    session_id: str = "s1",
    events: int = 3,
    **changes: Any,
) -> TaskRecord:
    """Return a task that ended so many days ago."""
    at = NOW - timedelta(days=days)
    return a_task(
        task_id,
        status=status,
        session_id=session_id,
        created_at=at - timedelta(minutes=1),
        status_changed_at=at,
        finished_at=at,
        stream_length=events,
        **changes,
    )


async def fill(store: StateStore, *tasks: TaskRecord, rows: int = 3) -> None:
    def work(tx: StoreTransaction) -> None:
        known = tx.sessions.load({task.session_id for task in tasks})
        tx.sessions.insert(
            [a_session(each) for each in sorted({task.session_id for task in tasks} - known.keys())]
        )
        tx.tasks.insert(tasks)
        fill_tables(tx, *[task.task_id for task in tasks], rows=rows)

    await store.transact(work)


async def left(store: StateStore, *task_ids: str) -> set[str]:
    return set(await store.read(lambda tx: tx.tasks.load(task_ids)))


async def positions(store: StateStore, task_id: str) -> list[int]:
    return [event.position for event in await store.read(lambda tx: tx.events.load(task_id))]


async def test_by_default_tasks_go_after_30_days_and_their_events_after_7(
    store: SQLiteStateStore, clock: Clock
) -> None:
    await fill(
        store,
        ended("month", days=31),
        ended("failed month", days=31, status=TaskStatus.FAILED),
        ended("week", days=8),
        ended("day", days=1),
        a_task("open", created_at=NOW - timedelta(days=99)),
    )
    storage = storage_of(store, clock)
    assert await storage.retention.sweep() == 2
    assert await left(store, "month", "failed month", "week", "day", "open") == {"week", "day", "open"}
    assert await store.read(lambda tx: rows_of(tx, "month")) == [0, 0, 0, 0, 0]
    assert [await positions(store, each) for each in ("week", "day", "open")] == [[2], [0, 1, 2], [0, 1, 2]]
    assert await storage.retention.sweep() == 0
    clock.now += timedelta(days=6, hours=1)
    assert await storage.retention.sweep() == 0
    assert await positions(store, "day") == [2]


async def test_what_is_off_is_kept(store: SQLiteStateStore, clock: Clock) -> None:
    await fill(store, ended("old", days=9999))
    storage = storage_of(store, clock, task_days="off", event_days="off")
    assert await storage.retention.sweep() == 0
    assert await store.read(lambda tx: rows_of(tx, "old")) == [1, 3, 3, 3, 1]


async def test_the_first_rule_that_matches_counts(store: SQLiteStateStore, clock: Clock) -> None:
    failed = TaskStatus.FAILED
    await fill(
        store,
        ended("audit", days=400, service_name="audit"),
        ended("failed", days=40, status=failed),
        ended("older failed", days=100, status=failed),
        ended("session", days=2, session_id="short"),
        ended("other", days=2),
    )
    rules = [
        RetentionRule(service="audit", task_days="off", event_days="off"),
        RetentionRule(status=(failed,), task_days=90),
        RetentionRule(session="short", task_days=1),
    ]
    storage = storage_of(store, clock, rules=rules)
    assert await storage.retention.sweep() == 2
    assert await left(store, "audit", "failed", "older failed", "session", "other") == {
        "audit",
        "failed",
        "other",
    }
    assert await positions(store, "audit") == [0, 1, 2]
    assert await positions(store, "failed") == [2]


async def test_counting_keeps_the_newest_and_what_ended_within_a_day(
    store: SQLiteStateStore, clock: Clock
) -> None:
    await fill(store, *[ended(f"t{n}", days=n + 0.5) for n in range(5)])
    await fill(store, *[ended(f"o{n}", days=n + 0.5, service_name="other") for n in range(5)])
    rules = [RetentionRule(service="other", max_tasks=3)]
    assert await storage_of(store, clock, rules=rules).retention.sweep() == 2
    assert await left(store, *[f"o{n}" for n in range(5)]) == {"o0", "o1", "o2"}
    assert (
        await storage_of(
            store, clock, rules=[RetentionRule(service="greeter", max_tasks=1)]
        ).retention.sweep()
        == 4
    )
    assert await left(store, *[f"t{n}" for n in range(5)]) == {"t0"}
    await fill(store, *[ended(f"new{n}", days=0.1) for n in range(5)])
    assert await storage_of(store, clock, max_tasks=1).retention.sweep() == 2
    assert await left(store, "t0", "o0", *[f"new{n}" for n in range(5)]) == {
        "t0",
        "o0",
        *[f"new{n}" for n in range(5)],
    }


async def test_children_stay_while_their_parent_is_open(store: SQLiteStateStore, clock: Clock) -> None:
    await fill(store, a_task("parent"), ended("child", days=99, parent_task_id="parent"))
    storage = storage_of(store, clock)
    assert await storage.retention.sweep() == 0
    over = ended("parent", days=31)
    await store.transact(lambda tx: tx.tasks.update([over]))
    clock.now += timedelta(days=1)  # when the walks begin again
    assert await storage.retention.sweep() == 2


async def test_sessions_of_single_tasks_go_with_them_and_all_others_stay(
    store: SQLiteStateStore, clock: Clock
) -> None:
    tasks = [ended(name, days=31, session_id=name) for name in ("own", "chosen", "written", "used")]

    def work(tx: StoreTransaction) -> None:
        at = tasks[0].created_at
        tx.sessions.insert(
            [
                a_session("own")._replace(created_at=at),
                a_session("chosen")._replace(created_at=at - timedelta(seconds=1)),
                a_session("written", version=1)._replace(created_at=at),
                a_session("used")._replace(created_at=at),
            ]
        )
        tx.tasks.insert([*tasks, a_task("open", session_id="used")])

    await store.transact(work)
    storage = storage_of(store, clock)
    assert await storage.retention.sweep() == 4
    sessions = {each.session_id for each in await store.read(lambda tx: tx.sessions.page())}
    assert sessions == {"chosen", "written", "used"}
    await storage_of(store, clock, session_days=1).retention.sweep()
    sessions = {each.session_id for each in await store.read(lambda tx: tx.sessions.page())}
    assert sessions == {"used"}


async def test_large_tasks_and_streams_go_in_bounded_transactions(
    store: SQLiteStateStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [ended(f"t{n}", days=31, events=40) for n in range(4)]
    streams = [ended(f"s{n}", days=8, events=40) for n in range(3)]
    await fill(store, *tasks, *streams, rows=40)
    counts: list[int] = []
    monkeypatch.setattr(batch_pace, "ONE_WRITER", ONE_WRITER._replace(max_rows=50))

    async def count() -> int:
        ids = [task.task_id for task in (*tasks, *streams)]
        return await store.read(lambda tx: sum(sum(rows_of(tx, each)) for each in ids))

    transact = store.transact

    async def counting(work: Any, *, synced: bool = True) -> Any:
        before = await count()
        done = await transact(work, synced=synced)
        counts.append(before - await count())
        return done

    monkeypatch.setattr(store, "transact", counting)
    assert await storage_of(store, clock).retention.sweep() == 4
    assert max(counts) <= 52
    assert await left(store, *[task.task_id for task in tasks]) == set()
    assert await count() == 3 * (40 + 40 + 1 + 1 + 1)


async def test_the_file_shrinks(store: SQLiteStateStore, clock: Clock, tmp_path: Path) -> None:
    def work(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session("s1")])
        tx.tasks.insert([ended(f"t{n:04}", days=31) for n in range(2000)])
        tx.events.insert(
            [EventRecord(f"t{n:04}", 2, "E", f'"{"x" * 2000}"', terminal=True) for n in range(2000)]
        )

    await store.transact(work)
    before = await store.sizes()
    assert before.total_bytes is not None
    assert await storage_of(store, clock).retention.sweep() == 2000
    await store.close()
    after = (tmp_path / "state.db").stat().st_size
    assert after < 0.4 * before.total_bytes


# -- what clients see


class Greets(Workflow):
    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.get('name')}")


async def finished(stack: Stack, task_id: str, *, name: str = "Zoë", session_id: str | None = None) -> None:
    submission = TaskSubmission(
        service_name="service", task_id=task_id, arguments={"name": name}, session_id=session_id
    )
    view = await stack.plane.tasks.submit(submission, wait=20)
    assert view.status is TaskStatus.SUCCEEDED


async def test_a_late_retry_of_a_removed_task_gets_410_and_does_not_run() -> None:
    async with running_stack() as stack, stack.serving(stack.service(Greets())):
        session = await stack.session()
        await finished(stack, "once", session_id=session)
        answer = await stack.plane.storage.purge(PurgeRequest(older_than_seconds=0))
        assert (answer.removed, answer.more) == (1, False)
        with pytest.raises(TaskRemovedError, match="another task_id") as told:
            await finished(stack, "once", session_id=session)
        assert told.value.task_id == "once"
        with pytest.raises(ConflictError, match="was removed"):
            await finished(stack, "once", name="Bob", session_id=session)
        for call in (stack.plane.tasks.get, stack.plane.tasks.cancel, stack.plane.tasks.events):
            with pytest.raises(TaskRemovedError):
                await call("once")
        assert await stack.plane.sessions.last_task(session) is None
        await finished(stack, "another", session_id=session)
        connection = HttpConnection(stack.server.config.url)
        for path in ("/tasks/once", f"/sessions/{session}/tasks/once/result"):
            with pytest.raises(TaskRemovedError):
                await connection.request(HttpRequest("GET", path))
        assert await connection.request(HttpRequest("GET", f"/sessions/{session}/tasks/no/result")) is None
        await connection.close()


async def test_a_reader_with_a_cursor_before_removed_events_gets_410() -> None:
    async with running_stack() as stack, stack.serving(stack.service(Greets())):
        await finished(stack, "t")
        length = len(await stack.events("t"))

        def grow(tx: StoreTransaction) -> None:
            ((task_id, task),) = tx.tasks.load(["t"]).items()
            (*_, last) = tx.events.load("t")
            tx.retention.trim_events({"t": task.stream_length})
            tx.events.insert([last._replace(position=task.stream_length + 3)])
            tx.tasks.update([task._replace(stream_length=task.stream_length + 4)])
            assert task_id == "t"

        await stack.store.transact(grow)
        for read in (stack.plane.tasks.events, stack.plane.streams.open):
            with pytest.raises(EventsExpiredError) as told:
                await read("t")
            assert (told.value.after, told.value.next_after) == (-1, length + 2)
            groups = [group async for group in await read("t", after=told.value.next_after or 0)]
            assert len([item for group in groups for item in group]) == 1


async def test_a_purge_is_counted_before_it_is_made(store: SQLiteStateStore, clock: Clock) -> None:
    failed = TaskStatus.FAILED
    await fill(
        store, ended("a", days=5), ended("b", days=6, status=failed), ended("c", days=7, status=failed)
    )
    await fill(store, ended("d", days=40, service_name="other"))
    storage = storage_of(store, clock)
    dry = await storage.purge(PurgeRequest(older_than_seconds=86_400, dry_run=True))
    assert [(each.service_name, each.status, each.tasks) for each in dry.matching] == [
        ("greeter", failed, 2),
        ("greeter", TaskStatus.SUCCEEDED, 1),
        ("other", TaskStatus.SUCCEEDED, 1),
    ]
    assert (await storage.purge(PurgeRequest(service="other"))).removed == 1  # by the settings: 30 days
    purge = PurgeRequest(older_than_seconds=6.5 * 86_400, status=[failed])
    assert (await storage.purge(purge)).removed == 1
    assert await left(store, "a", "b", "c", "d") == {"a", "b"}
    answer = await storage.purge(PurgeRequest(older_than_seconds=0, limit=1))
    assert (answer.removed, answer.more) == (1, True) or answer.removed == 2
    with pytest.raises(InvalidRequestError, match="older_than"):
        await storage_of(store, clock, task_days="off").purge(PurgeRequest())


async def test_bad_purges_are_refused_and_sizes_are_told_over_http() -> None:
    async with running_stack() as stack, stack.serving(stack.service(Greets())):
        await finished(stack, "t")
        connection = HttpConnection(stack.server.config.url)

        async def purge(**body: Any) -> Any:
            return await connection.request(HttpRequest("POST", "/storage/purge", json=body))

        wrong: list[dict[str, Any]] = [
            {"older_than_seconds": -1},
            {"older_than_seconds": "soon"},
            {"status": ["running"]},
            {"status": ["no status"]},
            {"limit": 0},
            {"limit": 10**9},
            {"servicename": "service"},
            {"service": ""},
        ]
        for body in wrong:
            with pytest.raises(InvalidRequestError):
                await purge(**{"older_than_seconds": 0, **body})
        assert await left(stack.store, "t") == {"t"}
        view = await connection.request(HttpRequest("GET", "/storage"))
        assert view["oldest_ended"].keys() == {"succeeded"}
        assert (view["removed_tasks"], view["retention"]["retention_task_days"]) == (False, 30.0)
        assert (await purge(older_than_seconds=0, service="other"))["removed"] == 0
        assert (await purge(older_than_seconds=0, service="service"))["removed"] == 1
        assert (await connection.request(HttpRequest("GET", "/storage")))["removed_tasks"] is True
        await connection.close()


async def test_an_id_is_remembered_for_90_days(store: SQLiteStateStore, clock: Clock) -> None:
    await fill(store, ended("old", days=31))
    storage = storage_of(store, clock)
    await storage.retention.sweep()
    clock.now += timedelta(days=89)
    await storage.retention.sweep()
    assert await store.read(lambda tx: list(tx.retention.removed(["old"]))) == ["old"]
    clock.now += timedelta(days=2)
    await storage.retention.sweep()
    assert await store.read(lambda tx: tx.retention.has_removed()) is False


async def test_what_ended_before_the_last_place_of_a_walk_is_found_a_day_later(
    store: SQLiteStateStore, clock: Clock
) -> None:
    await fill(store, ended("first", days=31))
    storage = storage_of(store, clock)
    assert await storage.retention.sweep() == 1
    await fill(store, ended("imported", days=99))
    assert await storage.retention.sweep() == 0
    clock.now += timedelta(days=1)
    assert await storage.retention.sweep() == 1


async def test_the_retention_of_a_running_control_plane_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(retention, "SWEEP_SECONDS", 0.01)
    async with running_stack(retention_task_days=0) as stack, stack.serving(stack.service(Greets())):
        await finished(stack, "t")

        async def is_gone() -> bool:
            return not await left(stack.store, "t")

        await eventually(is_gone)
        with pytest.raises(TaskRemovedError):
            await stack.plane.tasks.get("t")
