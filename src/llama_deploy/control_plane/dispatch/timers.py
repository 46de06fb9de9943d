"""Waking parked runs whose timers are due, and closing questions at their deadlines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.dispatch.question_deadlines import QuestionDeadlines
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.question_records import QuestionHead
from llama_deploy.state_stores.records import TaskRecord

logger = logging.getLogger(__name__)

_PAGE: Final = 500
_MIN_PAUSE: Final = timedelta(seconds=0.25)
"""After which due timers are looked at again that another control plane is deciding on."""


class _Due(NamedTuple):
    """What a sweep has read."""

    timers: list[datetime | None]
    """The next one, if there is one."""
    tasks: list[TaskRecord]
    deadlines: list[datetime | None]
    """The next one, if there is one."""
    questions: list[QuestionHead]


@dataclass(frozen=True, slots=True)
class Timers:
    """Wakes parked runs, and closes questions."""

    store: StateStore
    """Where their tasks are read."""
    writer: Writer
    """How they are changed."""
    deadlines: QuestionDeadlines
    """Closes questions."""
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""

    async def sweep(self) -> datetime | None:
        """Do what is due, and return when the next timer or deadline is. None: there is none."""
        now = self.clock()

        def read(tx: StoreTransaction) -> _Due:
            first, asked = tx.tasks.sleeping(limit=1), tx.questions.due(limit=1)
            return _Due(
                timers=[each.wake_at for each in first],
                tasks=tx.tasks.sleeping(due_before=now, limit=_PAGE) if first else [],
                deadlines=[each.deadline for each in asked],
                questions=tx.questions.due(due_before=now, limit=_PAGE) if asked else [],
            )

        found = await self.store.read(read)
        await self._wake(found.tasks)
        if found.questions:
            await self.deadlines.expire(found.questions)
        if _PAGE in (len(found.tasks), len(found.questions)):
            return now
        following = min([each for each in (*found.timers, *found.deadlines) if each], default=None)
        return following if following is None or following > now else now + _MIN_PAUSE

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
