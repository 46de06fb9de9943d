"""Removing ended tasks, and events of them, in one short transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from llama_deploy.control_plane.decisions.retention_rules import Share, digest_of, share
from llama_deploy.control_plane.maintenance.batch_pace import BatchLimits
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.state_stores.base import Notice, StateStore, StoreTransaction
from llama_deploy.state_stores.retention_rows import EndedTask, RemovedTask, RowsOfTask

_NOTHING: Final = RowsOfTask(0, 0)


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """What one transaction removes."""

    tasks: Sequence[EndedTask] = ()
    """The tasks that it looks at."""
    removed: Sequence[RemovedTask] = ()
    """What stays of them when they are removed."""
    sessions: frozenset[str] = frozenset()
    """Sessions that are deleted if no task of them is left."""


@dataclass(frozen=True, slots=True)
class TrimPlan:
    """The events that one transaction deletes."""

    tasks: Sequence[EndedTask] = ()
    lasts: dict[str, int] = field(default_factory=dict)
    """By task, the position of the terminal event."""
    in_slices: bool = False
    """Whether the only task has so many events that they are deleted in several transactions."""


@dataclass(frozen=True, slots=True)
class TaskRemoval:
    """Plans and carries out transactions of limited size."""

    store: StateStore
    known: KnownRemovals
    clock: Callable[[], datetime]
    limits: BatchLimits

    def plan(self, tx: StoreTransaction, tasks: Sequence[EndedTask]) -> RemovalPlan:
        """Read what is needed to remove the first of some ended tasks: as many as fit."""
        if not tasks:
            return RemovalPlan()
        taken = self._taken(tx, [task.task_id for task in tasks])
        chosen = tasks[: taken.size]
        inputs = tx.retention.inputs([task.task_id for task in chosen])
        now = self.clock()
        removed = [
            RemovedTask(
                task_id=task.task_id,
                session_id=task.session_id,
                digest=digest_of(task.service_name, inputs[task.task_id]),
                removed_at=now,
                has_rest=taken.last_in_slices,
            )
            for task in chosen
            if task.task_id in inputs
        ]
        # A submission without a session has created one, at the same time, that nobody has written to since.
        created = tx.retention.untouched_sessions({task.session_id for task in chosen})
        own = frozenset(task.session_id for task in chosen if created.get(task.session_id) == task.created_at)
        return RemovalPlan(chosen, removed, own)

    def carry_out(self, tx: StoreTransaction, plan: RemovalPlan) -> int:
        """Remove tasks, except for those that somebody decides on or needs; return how many were removed."""
        free = tx.lock_free({task.task_id for task in plan.removed})
        due = tx.retention.still_ended(free)
        removed = [task for task in plan.removed if task.task_id in due]
        if not removed:
            return 0
        if not tx.retention.has_removed():
            tx.notify(Notice(everything=True))  # from now on, others have to look up ids too
        tx.retention.remove(removed)
        if sessions := plan.sessions & {task.session_id for task in removed}:
            tx.retention.delete_empty_sessions(sessions)
        return len(removed)

    async def remove(self, plan: RemovalPlan) -> int:
        """Carry out a plan in a transaction of its own; return how many tasks were removed.

        Raises:
            UnavailableError: The store does not answer.
        """
        self.known.begin()
        return await self.store.transact(lambda tx: self.carry_out(tx, plan), synced=False)

    def plan_trim(self, tx: StoreTransaction, tasks: Sequence[EndedTask], *, most: int) -> TrimPlan:
        """Read what is needed to delete the events of the first of some ended tasks: as many as fit.

        Args:
            tx: Where to read.
            tasks: The tasks.
            most: Of how many of them events may be deleted.
        """
        sizes = tx.retention.event_sizes([task.task_id for task in tasks if task.stream_length > 1])
        # The terminal event stays.
        long = [task for task in tasks if sizes.get(task.task_id, _NOTHING).rows > 1]
        taken = self._share([sizes[task.task_id] for task in long[:most]])
        chosen = long[: taken.size]
        lasts = {task.task_id: task.stream_length - 1 for task in chosen}
        if taken.size == len(long):
            return TrimPlan(tasks, lasts, taken.last_in_slices)
        return TrimPlan(tasks[: tasks.index(chosen[-1]) + 1], lasts, taken.last_in_slices)

    def trim(self, tx: StoreTransaction, plan: TrimPlan) -> bool:
        """Delete events, except for those that somebody decides on; return whether those were all."""
        free = tx.lock_free(plan.lasts)
        if not plan.in_slices or not free:
            tx.retention.trim_events(
                {task_id: last for task_id, last in plan.lasts.items() if task_id in free}
            )
            return True
        ((task_id, last),) = plan.lasts.items()
        return tx.retention.trim_some_events(
            task_id, last=last, max_rows=self.limits.max_rows, max_bytes=self.limits.max_bytes
        )

    async def delete_some_rest(self) -> bool:
        """Delete rows of tasks that were too large to be removed at once; return whether there may be more.

        Raises:
            UnavailableError: The store does not answer.
        """
        found = await self.store.read(lambda tx: tx.retention.with_rest(limit=1))
        if not found:
            return False
        limits = self.limits
        await self.store.transact(
            lambda tx: tx.retention.delete_rest(
                found[0], max_rows=limits.max_rows, max_bytes=limits.max_bytes
            ),
            synced=False,
        )
        return True

    def _taken(self, tx: StoreTransaction, task_ids: Sequence[str]) -> Share:
        """Return how many of some tasks one transaction removes."""
        total = tx.retention.total_size(task_ids)
        if total.rows <= self.limits.max_rows and total.bytes <= self.limits.max_bytes:
            return Share(len(task_ids), last_in_slices=False)
        sizes = tx.retention.sizes(task_ids)
        return self._share([sizes.get(task_id, _NOTHING) for task_id in task_ids])

    def _share(self, sizes: Sequence[RowsOfTask]) -> Share:
        return share(sizes, max_rows=self.limits.max_rows, max_bytes=self.limits.max_bytes)
