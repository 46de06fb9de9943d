"""When an attempt is published, and which task of a session is next. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import hops, lifecycle
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskStatus


@dataclass(frozen=True, slots=True)
class DispatchPace:
    """How long attempts wait before they are published, for the first time or again."""

    unclaimed: Backoff
    """After each publication of an attempt that is not claimed."""
    lost: Backoff
    """After each lost attempt of a task but the first, which costs no pause."""

    def redispatch_at(self, *, dispatches: int, at: datetime) -> datetime:
        """Return when an attempt that was published so often by `at` is published again."""
        return at + timedelta(seconds=self.unclaimed.delay(dispatches))


def brought_forward(task: TaskRecord, *, by: timedelta, at: datetime) -> TaskRecord:
    """Return a task whose stored times fit a clock that was set back.

    Args:
        task: The task.
        by: How far the clock was set back.
        at: The present time.
    """

    def due(time: datetime | None) -> datetime | None:
        return None if time is None else time - by

    def past(time: datetime | None) -> datetime | None:
        # What has happened cannot lie in the future.
        return time - by if time is not None and time > at else time

    return task._replace(
        redispatch_at=due(task.redispatch_at),
        wake_at=due(task.wake_at),
        claimed_at=past(task.claimed_at),
        cancel_requested_at=past(task.cancel_requested_at),
    )


def next_turn(open_tasks: Sequence[TaskRecord], *, at: datetime) -> Transition | None:
    """Return the turn of a session's next task after another task has ended.

    Args:
        open_tasks: The oldest open tasks of the session, oldest first. Empty: it has none.
        at: The present time.
    """

    def waits(task: TaskRecord) -> bool:
        return task.status is TaskStatus.PENDING and not hops.is_unrouted(task)

    if open_tasks and all(waits(task) for task in open_tasks):
        return lifecycle.take_turn(open_tasks[0], at=at)
    return None
