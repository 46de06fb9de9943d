"""When an attempt is published, and which task of a session is next. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import hops, lifecycle
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.state_stores.records import InstanceRecord, TaskRecord
from llama_deploy.types import TaskStatus


class Takers(Enum):
    """Who could take an attempt of a service now."""

    NOBODY = "nobody"
    """No instance is alive, except for those that only run suspects."""
    BUSY = "busy"
    """All living instances were full at their last heartbeats."""
    FREE = "free"
    """A living instance has a free slot, or has not said."""


def takers(instances: Iterable[InstanceRecord], *, at: datetime, of_suspect: bool = False) -> Takers:
    """Return who could take an attempt.

    Args:
        instances: The instances of its service.
        at: The present time.
        of_suspect: Whether the task is a suspect: an instance makes room for it, or runs nothing else.
    """
    instances = list(instances)
    if of_suspect:
        is_alive = any(each.lease_expires_at > at for each in instances)
        return Takers.FREE if is_alive else Takers.NOBODY
    living = [each for each in instances if each.lease_expires_at > at and not each.only_suspects]
    if not living:
        return Takers.NOBODY
    return Takers.FREE if any(map(has_free_slot, living)) else Takers.BUSY


def has_free_slot(instance: InstanceRecord) -> bool:
    """Whether an instance had a slot for ordinary tasks at its last heartbeat, or has not said."""
    is_full = instance.slots is not None and (instance.running or 0) >= instance.slots
    return not is_full and not instance.only_suspects


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

    def held_until(self, task: TaskRecord, by: Takers, *, at: datetime) -> datetime | None:
        """Return until when an attempt that is due is not published. None: it is published now.

        Each attempt is published once, whoever is there. While nobody can take it, another message would only
        lie beside the first one. The queue may have lost the first one: that matters when an instance
        registers or has a free slot, which ends this pause. Behind instances that stay full, an attempt is
        published again once in the longest pause, in case it was lost.
        """
        if not task.dispatches:
            return None
        longest = timedelta(seconds=self.unclaimed.longest)
        if by is Takers.NOBODY:
            return at + longest
        if by is Takers.BUSY and task.dispatches > self._waited(task, at) / longest:
            return self.as_long_again(task, at=at)
        return None

    def as_long_again(self, task: TaskRecord, *, at: datetime) -> datetime:
        """Return when an attempt has waited twice as long as by now, or for the longest pause from now on."""
        return at + min(self._waited(task, at), timedelta(seconds=self.unclaimed.longest))

    def _waited(self, task: TaskRecord, at: datetime) -> timedelta:
        return max(at - task.status_changed_at, timedelta(seconds=self.unclaimed.first))


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


def next_turn(open_tasks: Sequence[TaskRecord], *, pass_waiting: bool, at: datetime) -> Transition | None:
    """Return the turn of a session's next task after another task has ended, or has begun to wait.

    Args:
        open_tasks: The oldest open tasks of the session, oldest first. Empty: it has none.
        pass_waiting: Whether the policy of the session lets it start before those shown as `waiting`.
        at: The present time.
    """

    def has_turn_to_come(task: TaskRecord) -> bool:
        return task.status is TaskStatus.PENDING and not hops.is_unrouted(task)

    ahead = [task for task in open_tasks if not (pass_waiting and task.shown_status is TaskStatus.WAITING)]
    if ahead and all(map(has_turn_to_come, ahead)):
        return lifecycle.take_turn(ahead[0], at=at)
    return None
