"""Ended tasks, what is left of removed ones, and deleting in bounded amounts."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.event_packs import packed
from llama_deploy.state_stores.records import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    RunHeadRecord,
    TaskRecord,
)
from llama_deploy.state_stores.retention_rows import (
    EndedCount,
    EndedFilter,
    Place,
    RemovedTask,
    RetentionProgress,
    RowsOfTask,
)
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

_PATIENCE_SECONDS: Final = 10.0


def ended_task(
    task_id: str, seconds: float = 0.0, status: TaskStatus = TaskStatus.SUCCEEDED, **changes: Any
) -> TaskRecord:
    """Return a task that ended so many seconds after `NOW`."""
    at = NOW + timedelta(seconds=seconds)
    return a_task(task_id, status=status, status_changed_at=at, finished_at=at, **changes)


def removed_task(task_id: str, **changes: Any) -> RemovedTask:
    """Return what is left of a task."""
    return RemovedTask(task_id, "s1", "digest", NOW)._replace(**changes)


def fill_tables(tx: StoreTransaction, *task_ids: str, rows: int = 1, data: str = "{}") -> None:
    """Store rows of tasks in every table that has several of them."""
    for task_id in task_ids:
        tx.events.insert([EventRecord(task_id, n, "E", data) for n in range(rows)])
        tx.inbox.insert([InboxRecord(task_id, n + 1, data) for n in range(rows)])
        tx.runs.insert_journal([JournalRecord(task_id, n, data) for n in range(rows)])
    tx.runs.put([RunHeadRecord(task_id, "f", "1") for task_id in task_ids])


def rows_of(tx: StoreTransaction, task_id: str) -> list[int]:
    """Return how many rows of a task there are."""
    return [
        len(tx.tasks.load([task_id])),
        len(tx.events.load(task_id)),
        len(tx.inbox.load([task_id])),
        len(tx.runs.load_journal([task_id])),
        len(tx.runs.load([task_id])),
    ]


class RetentionTests(StoreTests):
    """Retention."""

    async def test_ended_tasks_of_a_status_come_by_their_end_and_in_pages(self, store: StateStore) -> None:
        later = NOW + timedelta(seconds=5)

        def fill(tx: StoreTransaction) -> None:
            tx.tasks.insert(
                [
                    ended_task("c", 2),
                    ended_task("a", 1),
                    ended_task("b", 1),
                    ended_task("failed", 0, TaskStatus.FAILED),
                    ended_task("late", 5),
                    a_task("open", status=TaskStatus.RUNNING),
                ]
            )

        await store.transact(fill)

        async def page(after: Place | None = None, limit: int = 500) -> list[str]:
            found = await store.read(
                lambda tx: tx.retention.ended(TaskStatus.SUCCEEDED, before=later, after=after, limit=limit)
            )
            places.extend(task.place for task in found)
            return [task.task_id for task in found]

        places: list[Place] = []
        assert await page() == ["a", "b", "c"]
        assert await page(limit=1) == ["a"]
        assert await page(places[0]) == ["b", "c"]
        assert await page(places[2]) == []
        (task, *_) = await store.read(lambda tx: tx.retention.ended(TaskStatus.FAILED, before=later))
        assert (task.task_id, task.status, task.ended_at) == ("failed", TaskStatus.FAILED, NOW)

    async def test_the_newest_ended_tasks_are_counted_off(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.tasks.insert([ended_task(f"t{n}", n) for n in range(5)])
            tx.tasks.insert([ended_task("f", 2.5, TaskStatus.FAILED, service_name="other", session_id="s2")])
            tx.tasks.insert([a_task("open")])

        await store.transact(fill)

        async def newest(count: int, **filters: Any) -> float | None:
            at = await store.read(lambda tx: tx.retention.newest(EndedFilter(**filters), count=count))
            return None if at is None else (at - NOW).total_seconds()

        assert [await newest(n) for n in (1, 3, 6, 7)] == [4, 2.5, 0, None]
        assert await newest(3, statuses=(TaskStatus.SUCCEEDED,)) == 2
        assert await newest(1, statuses=(TaskStatus.FAILED, TaskStatus.CANCELLED)) == 2.5
        assert await newest(1, service_name="other") == 2.5
        assert await newest(2, service_name="other") is None
        assert await newest(2, session_id="s1", service_name="greeter") == 3
        counted = await store.read(
            lambda tx: tx.retention.counts(EndedFilter(), before=NOW + timedelta(seconds=4))
        )
        assert sorted(counted) == [
            EndedCount("greeter", TaskStatus.SUCCEEDED, 4, NOW),
            EndedCount("other", TaskStatus.FAILED, 1, NOW + timedelta(seconds=2.5)),
        ]

    async def test_tasks_of_open_parents_are_still_needed(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.tasks.insert([a_task("open"), ended_task("over")])
            tx.tasks.insert(
                [
                    ended_task("child of open", parent_task_id="open"),
                    ended_task("child of over", parent_task_id="over"),
                    ended_task("child of nothing", parent_task_id="unknown"),
                ]
            )

        await store.transact(fill)
        asked = ["open", "over", "child of open", "child of over", "child of nothing", "unknown"]
        found = await store.transact(lambda tx: tx.retention.still_ended(asked))
        assert found == {"over", "child of over", "child of nothing"}

    async def test_a_removed_task_leaves_nothing_but_its_id_and_digest(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.tasks.insert([ended_task("gone"), ended_task("kept")])
            fill_tables(tx, "gone", "kept", rows=3)

        await store.transact(fill)
        sizes = await store.read(lambda tx: tx.retention.sizes(["gone", "unknown"]))
        assert sizes["gone"].rows == 10
        assert sizes["gone"].bytes >= 9 * len("{}") + len("Zoë")
        assert list(sizes) == ["gone"]
        assert await store.read(lambda tx: tx.retention.total_size(["gone", "unknown"])) == sizes["gone"]
        assert await store.read(lambda tx: tx.retention.total_size(["unknown"])) == RowsOfTask(0, 0)
        assert not await store.read(lambda tx: tx.retention.has_removed())
        gone = removed_task("gone")
        await store.transact(lambda tx: tx.retention.remove([gone]))
        assert await store.read(lambda tx: rows_of(tx, "gone")) == [0, 0, 0, 0, 0]
        assert await store.read(lambda tx: rows_of(tx, "kept")) == [1, 3, 3, 3, 1]
        assert await store.read(lambda tx: tx.retention.removed(["gone", "kept"])) == {"gone": gone}
        assert await store.read(lambda tx: tx.retention.has_removed())
        # It may come back as a copy, and be removed again.
        again = gone._replace(digest="another", removed_at=NOW + timedelta(days=1))
        await store.transact(lambda tx: tx.retention.remove([again]))
        assert await store.read(lambda tx: tx.retention.removed(["gone"])) == {"gone": again}

    async def test_what_is_left_of_removed_tasks_is_forgotten_by_its_age(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            old = NOW - timedelta(days=1)
            tx.retention.remove([removed_task(f"old {n}", removed_at=old) for n in range(3)])
            tx.retention.remove([removed_task("new"), removed_task("rest", removed_at=old, has_rest=True)])

        await store.transact(fill)
        counts = [
            await store.transact(lambda tx: tx.retention.forget_removed(before=NOW, limit=2))
            for _ in range(3)
        ]
        assert counts == [2, 1, 0]
        left = await store.read(lambda tx: tx.retention.removed(["old 0", "old 1", "old 2", "new", "rest"]))
        assert sorted(left) == ["new", "rest"]

    async def test_the_rest_of_a_large_task_goes_in_slices(self, store: StateStore) -> None:
        def fill(tx: StoreTransaction) -> None:
            tx.tasks.insert([ended_task("large"), ended_task("kept")])
            fill_tables(tx, "large", "kept", rows=50, data='"' + "x" * 98 + '"')

        await store.transact(fill)
        await store.transact(lambda tx: tx.retention.remove([removed_task("large", has_rest=True)]))
        assert await store.read(lambda tx: tx.tasks.load(["large"])) == {}
        assert await store.read(lambda tx: tx.retention.with_rest(limit=10)) == ["large"]
        slices = 0
        while not await store.transact(
            lambda tx: tx.retention.delete_rest("large", max_rows=40, max_bytes=2000)
        ):
            slices += 1
            (_, *rows) = await store.read(lambda tx: rows_of(tx, "large"))
            assert 151 - sum(rows) <= slices * 28  # 2000 bytes, and up to the row or the first few with them
        assert slices >= 7
        assert await store.read(lambda tx: rows_of(tx, "large")) == [0, 0, 0, 0, 0]
        assert await store.read(lambda tx: rows_of(tx, "kept")) == [1, 50, 50, 50, 1]
        assert await store.read(lambda tx: tx.retention.with_rest(limit=10)) == []

    async def test_events_before_a_position_are_deleted(self, store: StateStore) -> None:
        await store.transact(lambda tx: fill_tables(tx, "one", "two", "three", rows=5))
        sizes = await store.read(lambda tx: tx.retention.event_sizes(["one", "unknown"]))
        assert sizes == {"one": RowsOfTask(5, sizes["one"].bytes)}
        await store.transact(lambda tx: tx.retention.trim_events({"one": 4, "two": 2, "unknown": 9}))
        left = await store.read(lambda tx: [[e.position for e in tx.events.load(t)] for t in ("one", "two")])
        assert left == [[4], [2, 3, 4]]

        async def trim() -> bool:
            return await store.transact(
                lambda tx: tx.retention.trim_some_events("three", last=4, max_rows=2, max_bytes=1000)
            )

        assert [await trim(), await trim(), await trim()] == [False, False, True]
        assert [event.position for event in await store.read(lambda tx: tx.events.load("three"))] == [4]

    @pytest.mark.parametrize("limits", [(9, 10_000), (1, 10_000), (9, 1)])
    async def test_packs_are_deleted_with_the_events_before_a_position(
        self, store: StateStore, limits: tuple[int, int]
    ) -> None:
        def fill(tx: StoreTransaction) -> None:
            for task_id in ("one", "two"):
                tx.events.insert([EventRecord(task_id, n, "Progress", f'{{"n": {n}}}') for n in range(7)])
                for _ in range(2):
                    tx.events.put_packs(packed(tx.events.loose(task_id, limit=2)))

        def positions(tx: StoreTransaction, task_id: str) -> list[int]:
            return [event.position for event in tx.events.load(task_id)]

        await store.transact(fill)
        sizes = await store.read(lambda tx: tx.retention.event_sizes(["one"]))
        assert sizes["one"].rows == 2 + 3
        await store.transact(lambda tx: tx.retention.trim_events({"one": 6}))
        rows, size = limits
        while not await store.transact(
            lambda tx: tx.retention.trim_some_events("two", last=6, max_rows=rows, max_bytes=size)
        ):
            left = await store.read(lambda tx: positions(tx, "two"))
            assert left == [*range(left[0], 7)]  # never a gap
        for task_id in ("one", "two"):
            assert await store.read(partial(positions, task_id=task_id)) == [6]

    async def test_only_sessions_without_tasks_are_deleted(self, store: StateStore) -> None:
        written = a_session("written", version=1)._replace(updated_at=NOW + timedelta(days=1))

        def fill(tx: StoreTransaction) -> None:
            tx.sessions.insert([a_session("empty"), a_session("used"), written])
            tx.tasks.insert([ended_task("t", session_id="used")])

        await store.transact(fill)
        untouched = await store.read(
            lambda tx: tx.retention.untouched_sessions(["empty", "used", "written", "unknown"])
        )
        assert untouched == {"empty": NOW, "used": NOW}
        page = await store.read(lambda tx: tx.retention.session_page(after="empty", limit=5))
        assert page == [("used", NOW), ("written", written.updated_at)]
        deleted = await store.transact(
            lambda tx: tx.retention.delete_empty_sessions(["empty", "used", "unknown"])
        )
        assert deleted == {"empty"}
        assert [each.session_id for each in await store.read(lambda tx: tx.sessions.page())] == [
            "used",
            "written",
        ]

    async def test_the_progress_of_a_policy_is_kept(self, store: StateStore) -> None:
        first = RetentionProgress("one", "{}", NOW, NOW)
        second = first._replace(cursors='{"a": 1}', changed_at=NOW + timedelta(days=1))
        await store.transact(lambda tx: tx.retention.put_progress(first))
        assert await store.transact(lambda tx: tx.retention.take_progress("one")) == first
        await store.transact(lambda tx: tx.retention.put_progress(second))
        assert await store.read(lambda tx: tx.retention.progress("one")) == second
        assert await store.read(lambda tx: tx.retention.progress("two")) is None
        await store.transact(lambda tx: tx.retention.forget_progress(before=NOW + timedelta(hours=1)))
        assert await store.read(lambda tx: tx.retention.progress("one")) == second
        await store.transact(lambda tx: tx.retention.forget_progress(before=NOW + timedelta(days=2)))
        assert await store.read(lambda tx: tx.retention.progress("one")) is None

    async def test_a_progress_that_another_control_plane_has_taken_is_left_to_it(
        self, store: StateStore
    ) -> None:
        if not store.shared:
            return
        first = RetentionProgress("one", "{}", NOW, NOW)
        await store.transact(lambda tx: tx.retention.put_progress(first))
        taken, go_on = threading.Event(), threading.Event()

        def hold(tx: StoreTransaction) -> None:
            assert tx.retention.take_progress("one") == first
            taken.set()
            assert self.wait_in_work(go_on.is_set, seconds=_PATIENCE_SECONDS)

        holding = asyncio.create_task(store.transact(hold))
        await eventually(taken.is_set)
        try:
            assert await store.transact(lambda tx: tx.retention.take_progress("one")) is None
        finally:
            go_on.set()
            await holding
        assert await store.transact(lambda tx: tx.retention.take_progress("one")) == first
