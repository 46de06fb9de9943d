"""Which queued attempts leave for the message queue again, and when."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Final, TypeGuard

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.deaths import is_suspect
from llama_deploy.control_plane.decisions.destinations import needs_fitting_version
from llama_deploy.control_plane.decisions.dispatch_rules import Takers, brought_forward, takers
from llama_deploy.control_plane.decisions.transitions import Transition
from llama_deploy.control_plane.storage.fleets import FleetChange
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
    full: set[str] = field(default_factory=set, init=False)
    """Services whose attempts were held because all instances were full, until `resume_some`."""

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
            due_only: Whether those are left out that are not due any more. False: the queue has lost what was
                published before, so that all are published, whoever is there.
        """
        if not tasks:
            return
        targets = {task.target for task in tasks}
        found = await self.store.read(lambda tx: tx.instances.load(service_names=targets))
        by_target: dict[str, list[InstanceRecord]] = {target: [] for target in targets}
        for instance in found:
            by_target[instance.service_name].append(instance)
        waiting = {task.task_id for task in tasks if self._is_waiting(task, by_target[task.target])}

        def takers_of(task: TaskRecord, at: datetime) -> Takers:
            if not due_only:
                return Takers.FREE
            return takers(by_target[task.target], at=at, of_suspect=is_suspect(task))

        now = self.clock()
        by = {task.task_id: takers_of(task, now) for task in tasks}
        self.held.update(task.target for task in tasks if by[task.task_id] is Takers.NOBODY)
        self.full.update(task.target for task in tasks if by[task.task_id] is Takers.BUSY)

        def run(unit: Unit) -> int:
            known = [task for each in tasks if (task := unit.tasks.find(each.task_id)) is not None]
            if due_only:
                # Another control plane may have published it since.
                known = [item for item in known if item.redispatch_at and item.redispatch_at <= unit.now]
            count = 0
            for task in known:
                if task.task_id in waiting and not lifecycle.is_held_back(task):
                    unit.postpone(task)
                else:
                    count += unit.publish_again(task, by[task.task_id])
            return count

        if count := await self.writer.write(Command(run, _free(tasks))):
            logger.info("%d unclaimed tasks are published again", count, extra={"action": "dispatch_again"})

    def _is_waiting(self, task: TaskRecord, instances: Sequence[InstanceRecord]) -> bool:
        # With several versions, the attempt may go to another topic than others of its service.
        is_mixed = len({each.version for each in instances}) > 1
        is_sure = is_suspect(task) or not (is_mixed and needs_fitting_version(task))
        return is_sure and self.is_waiting(task)

    async def send_elsewhere(self, changes: Sequence[FleetChange]) -> None:
        """Publish attempts again that go elsewhere now, because instances have joined or left.

        Others stay where they are. This is no further look whether a message was lost: it does not count
        among the `dispatches` of a task.
        """
        by_service: defaultdict[str, list[FleetChange]] = defaultdict(list)
        for change in changes:
            by_service[change.service_name].append(change)
        held = await self.store.read(lambda tx: tx.tasks.held(list(by_service), limit=_MAX_AT_START))
        count = 0

        def run(unit: Unit, page: Sequence[TaskRecord]) -> int:
            known = [task for each in page if (task := unit.tasks.find(each.task_id)) is not None]
            return sum(unit.send_elsewhere(task, by_service[task.target]) for task in known)

        for start in range(0, len(held), _PAGE):
            page = held[start : start + _PAGE]
            count += await self.writer.write(Command(partial(run, page=page), _free(page)))
        if count:
            logger.info(
                "%d tasks are sent to other instances, because some have joined or left",
                count,
                extra={"action": "send_elsewhere"},
            )

    async def bring_forward(self, by: timedelta) -> None:
        """Make what is due later due earlier: the clock was set back, and all delays would grow.

        It changes queued attempts, timers of parked runs, and what counts from a claim or a cancellation.
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
        """Make attempts due soon that were held because their service had no instance. It has one now.

        First the instance takes what it finds in the queue.
        """
        self.held.discard(service_name)
        while await self._bring_forward_page(service_name):
            pass

    async def resume_some(self, service_name: str) -> None:
        """Make attempts due soon that were held because all instances were full. One has a free slot now.

        First it takes what it finds in the queue. The attempts that are due last come first; the others
        follow when a slot is reported free again.
        """
        if not await self._bring_forward_page(service_name, max_dispatches=_MAX_EXPEDITED_DISPATCHES):
            self.full.discard(service_name)

    async def _bring_forward_page(self, service_name: str, *, max_dispatches: int | None = None) -> bool:
        """Make some attempts of a service due soon, the latest first; return whether there may be more."""
        soon = self.clock() + self.lease

        def is_late(task: TaskRecord | None) -> TypeGuard[TaskRecord]:
            return (
                task is not None
                and task.status is TaskStatus.QUEUED
                and not lifecycle.is_held_back(task)
                and task.redispatch_at is not None
                and task.redispatch_at > soon
                and (max_dispatches is None or task.dispatches <= max_dispatches)
            )

        def run(unit: Unit, page: Sequence[TaskRecord]) -> int:
            late = [task for each in page if is_late(task := unit.tasks.find(each.task_id))]
            for task in late:
                unit.apply(Transition(task._replace(redispatch_at=soon)))
            return len(late)

        page = await self.store.read(lambda tx: tx.tasks.queued_for(service_name, limit=_PAGE))
        late = [task for task in page if is_late(task)]
        return bool(late) and bool(await self.writer.write(Command(partial(run, page=late), _free(late))))

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
