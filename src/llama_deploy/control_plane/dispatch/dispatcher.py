"""Which queued attempts leave for the message queue again, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Final, TypeGuard

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.dispatch_rules import Takers, brought_forward, takers
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, TaskRecord
from llama_deploy.types import TaskStatus

logger = logging.getLogger(__name__)

_PAGE: Final = 500
_MAX_AT_START: Final = 100_000
"""The most attempts that are published again at the start; later sweeps find the others."""
_MAX_EXPEDITED_DISPATCHES: Final = 2
"""An attempt that was published more often keeps its own pace."""
_times_of: Final = attrgetter("redispatch_at", "wake_at", "claimed_at", "cancel_requested_at")
_MIN_PAUSE: Final = timedelta(seconds=0.25)
"""The shortest pause between two sweeps that have found less than a page."""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Publishes attempts again that are not claimed, and delayed attempts when they are due.

    A transaction that makes an attempt ready publishes it itself, by `decisions.dispatch_rules`.
    """

    store: StateStore
    """Where queued tasks are read."""
    writer: Writer
    """How they are changed."""
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    lease: timedelta
    """How long an instance may be silent."""
    is_waiting: Callable[[TaskRecord], bool]
    """Whether messages to the topic of a task's attempts wait to be published, so that repeating them is
    useless."""
    held: set[str] = field(default_factory=set, init=False)
    """Services whose attempts were held because no instance was alive, until `resume`."""

    async def sweep(self) -> datetime | None:
        """Publish the attempts that are due, and return when the next one is. None: there is none."""
        now = self.clock()

        def read(tx: StoreTransaction) -> tuple[list[TaskRecord], list[TaskRecord]]:
            first = tx.tasks.queued(limit=1)
            return first, tx.tasks.queued(due_before=now, limit=_PAGE) if first else []

        first, due = await self.store.read(read)
        await self.dispatch(due)
        if len(due) == _PAGE:
            return now
        # Attempts that become due one shortly after the other are published together.
        return max(first[0].redispatch_at or now, now + _MIN_PAUSE) if first else None

    async def dispatch_all(self) -> None:
        """Publish every queued attempt again, because the queue has lost all its messages."""
        queued = await self.store.read(lambda tx: tx.tasks.queued(limit=_MAX_AT_START))
        tasks = [task for task in queued if not lifecycle.is_held_back(task)]
        for start in range(0, len(tasks), _PAGE):
            await self.dispatch(tasks[start : start + _PAGE], due_only=False)

    async def dispatch(self, tasks: Sequence[TaskRecord], *, due_only: bool = True) -> None:
        """Publish the attempts of tasks (again).

        Args:
            tasks: Tasks that were queued when they were read.
            due_only: Whether those are left out that are not due any more.
        """
        if not tasks:
            return
        targets = {task.target for task in tasks}
        waiting = {task.task_id for task in tasks if self.is_waiting(task)}
        found = await self.store.read(lambda tx: tx.instances.load(service_names=targets))
        by_target: dict[str, list[InstanceRecord]] = {target: [] for target in targets}
        for instance in found:
            by_target[instance.service_name].append(instance)
        now = self.clock()
        self.held.update(name for name, each in by_target.items() if takers(each, at=now) is Takers.NOBODY)

        def run(unit: Unit) -> int:
            known = [task for each in tasks if (task := unit.tasks.find(each.task_id)) is not None]
            if due_only:
                # Another control plane may have published it since.
                known = [item for item in known if item.redispatch_at and item.redispatch_at <= unit.now]
            by = {target: takers(instances, at=unit.now) for target, instances in by_target.items()}
            count = 0
            for task in known:
                if task.task_id in waiting and not lifecycle.is_held_back(task):
                    unit.postpone(task)
                else:
                    count += unit.publish_again(task, by[task.target])
            return count

        if count := await self.writer.write(Command(run, _free(tasks))):
            logger.info("%d unclaimed tasks are published again", count, extra={"action": "dispatch_again"})

    async def dispatch_held(self, service_names: Collection[str]) -> None:
        """Publish the attempts again that not every version of these services can run.

        A version has come that may fit, or an instance has left to whose own topic they were sent.
        """
        held = await self.store.read(lambda tx: tx.tasks.held(service_names, limit=_MAX_AT_START))
        tasks = [task for task in held if not lifecycle.is_held_back(task)]
        for start in range(0, len(tasks), _PAGE):
            await self.dispatch(tasks[start : start + _PAGE], due_only=False)

    async def bring_forward(self, by: timedelta) -> None:
        """Let what is due later be due earlier: the clock was set back, and all delays would grow.

        That are queued attempts, timers of parked runs, and what is measured from a claim or a cancellation.
        """

        def read(tx: StoreTransaction) -> list[TaskRecord]:
            instance_ids = [instance.instance_id for instance in tx.instances.load()]
            running = tx.tasks.of_instances(instance_ids) if instance_ids else []
            queued, sleeping = tx.tasks.queued(limit=_MAX_AT_START), tx.tasks.sleeping(limit=_MAX_AT_START)
            return [*queued, *sleeping, *running]

        found = await self.store.read(read)

        def run(unit: Unit, page: Sequence[TaskRecord]) -> None:
            for each in page:
                task = unit.tasks.find(each.task_id)
                # What was decided since is decided by the new time.
                if task is not None and _times_of(task) == _times_of(each):
                    unit.apply(Transition(brought_forward(task, by=by, at=unit.now)))

        for start in range(0, len(found), _PAGE):
            page = found[start : start + _PAGE]
            await self.writer.write(Command(partial(run, page=page), _free(page)))

    async def resume(self, service_name: str) -> None:
        """Let what was held because a service had no instance be due soon: there is one now.

        First the instance takes what it finds in the queue.
        """
        self.held.discard(service_name)
        soon = self.clock() + self.lease

        def is_late(task: TaskRecord | None) -> TypeGuard[TaskRecord]:
            return (
                task is not None
                and task.status is TaskStatus.QUEUED
                and not lifecycle.is_held_back(task)
                and task.redispatch_at is not None
                and task.redispatch_at > soon
            )

        def run(unit: Unit, page: Sequence[TaskRecord]) -> int:
            late = [task for each in page if is_late(task := unit.tasks.find(each.task_id))]
            for task in late:
                unit.apply(Transition(task._replace(redispatch_at=soon)))
            return len(late)

        while True:
            page = await self.store.read(lambda tx: tx.tasks.queued_for(service_name, limit=_PAGE))
            late = [task for task in page if is_late(task)]
            if not late or not await self.writer.write(Command(partial(run, page=late), _free(late))):
                return

    async def expedite(self, service_names: Collection[str]) -> None:
        """Publish the unclaimed attempts of services again soon, because an instance of theirs is silent.

        The instance may only be paused, and the queue may have delivered messages to it.
        """
        soon = self.clock() + self.lease
        if not service_names:
            return

        def late(task: TaskRecord) -> bool:
            is_late = task.redispatch_at is not None and task.redispatch_at > soon
            return (
                is_late and task.target in service_names and 1 <= task.dispatches <= _MAX_EXPEDITED_DISPATCHES
            )

        def run(unit: Unit) -> None:
            for each in waiting:
                task = unit.tasks.find(each.task_id)
                if task is not None and task.status is TaskStatus.QUEUED and late(task):
                    unit.apply(Transition(task._replace(redispatch_at=soon)))

        queued = await self.store.read(lambda tx: tx.tasks.queued(limit=_PAGE))
        waiting = [task for task in queued if late(task)]
        if waiting:
            await self.writer.write(Command(run, _free(waiting)))


def _free(tasks: Sequence[TaskRecord]) -> Reads:
    return Reads(free_tasks={task.task_id for task in tasks})
