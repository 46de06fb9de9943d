"""What feeds of task changes read."""

# A test's name says what it shows.
# ruff: noqa: D102

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.testing.records import NOW, a_full_task, a_task
from llama_deploy.testing.state_store_suite.base import StoreTests
from llama_deploy.types import TaskStatus

_SECOND = timedelta(seconds=1)


def _changed_since(
    tx: StoreTransaction, *, status: TaskStatus, seconds: int, after: str = "", limit: int = 1000
) -> list[str]:
    found = tx.feeds.changed_since(status, NOW + seconds * _SECOND, after=after, limit=limit)
    return [task.task_id for task in found]


class FeedTests(StoreTests):
    """A store tells which tasks have changed since a time."""

    async def test_a_task_is_read_without_its_input_and_result(self, store: StateStore) -> None:
        full = a_full_task("t1")
        await store.transact(lambda tx: tx.tasks.insert([full, a_task("t2")]))
        expected = {"t1": TaskChangeRecord.of(full), "t2": TaskChangeRecord.of(a_task("t2"))}
        assert await store.read(lambda tx: tx.feeds.load(["t2", "t1", "unknown"])) == expected

    @pytest.mark.parametrize("status", list(TaskStatus))
    async def test_tasks_with_a_status_come_in_the_order_of_their_changes(
        self, store: StateStore, status: TaskStatus
    ) -> None:
        tasks = [
            a_task(
                f"t{n}",
                status=status,
                status_changed_at=NOW + n // 3 * _SECOND,
                finished_at=NOW if status.is_terminal else None,
            )
            for n in range(9)
        ]
        other = TaskStatus.QUEUED if status is TaskStatus.FAILED else TaskStatus.FAILED
        tasks.append(a_task("other", status=other, status_changed_at=NOW + 9 * _SECOND))
        await store.transact(lambda tx: tx.tasks.insert(list(reversed(tasks))))
        read = partial(_changed_since, status=status)
        assert await store.read(partial(read, seconds=0)) == [f"t{n}" for n in range(9)]
        assert await store.read(partial(read, seconds=1, limit=4)) == ["t3", "t4", "t5", "t6"]
        assert await store.read(partial(read, seconds=2, after="t6")) == ["t7", "t8"]
        assert await store.read(partial(read, seconds=2, after="t8")) == []
        assert await store.read(partial(read, seconds=3)) == []
