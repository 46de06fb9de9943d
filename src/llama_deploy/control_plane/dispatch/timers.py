"""Waking parked runs whose timers are due."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import TaskRecord

logger = logging.getLogger(__name__)

_PAGE: Final = 500
_MIN_PAUSE: Final = timedelta(seconds=0.25)
"""After which due timers are looked at again that another control plane is deciding on."""


@dataclass(frozen=True, slots=True)
class Timers:
    """Wakes parked runs."""

    store: StateStore
    """Where their tasks are read."""
    writer: Writer
    """How they are changed."""
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""

    async def sweep(self) -> datetime | None:
        """Wake the runs whose timers are due, and return when the next one is. None: there is none."""
        now = self.clock()

        def read(tx: StoreTransaction) -> tuple[list[TaskRecord], list[TaskRecord]]:
            first = tx.tasks.sleeping(limit=1)
            return first, tx.tasks.sleeping(due_before=now, limit=_PAGE) if first else []

        first, due = await self.store.read(read)
        await self._wake(due)
        if len(due) == _PAGE:
            return now
        if not first:
            return None
        timer = first[0].wake_at
        return timer if timer is not None and timer > now else now + _MIN_PAUSE

    async def _wake(self, tasks: Sequence[TaskRecord]) -> None:
        if not tasks:
            return

        def run(unit: Unit) -> int:
            known = [task for each in tasks if (task := unit.tasks.find(each.task_id)) is not None]
            # An event may have woken it, and it may have parked again since.
            due = [task for task in known if task.wake_at is not None and task.wake_at <= unit.now]
            for task in due:
                unit.apply(lifecycle.wake(task, at=unit.now))
            return len(due)

        reads = Reads(free_tasks={task.task_id for task in tasks})
        if count := await self.writer.write(Command(run, reads)):
            logger.info("%d parked tasks resume: their timers are due", count, extra={"action": "wake"})
