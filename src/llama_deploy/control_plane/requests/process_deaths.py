"""Moving on the tasks of a process that has ended, as soon as its supervisor reports it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.requests.report_barrier import ReportBarrier
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.instance_protocol import ProcessDeath

logger = logging.getLogger(__name__)

_REPORTS_SECONDS: Final = 0.2
"""How long the last reports of the process may take to be stored."""


@dataclass(frozen=True, slots=True)
class ProcessDeaths:
    """Takes the reports of supervisors."""

    writer: Writer
    barrier: ReportBarrier

    async def report(self, death: ProcessDeath) -> None:
        """Give the tasks of a dead process their next attempts, and delete its instances.

        Its reports that are in the queue are taken first, so that what it has finished does not run again.
        Idempotent; unknown instances are ignored.

        Raises:
            UnavailableError: The store does not answer.
            OverloadedError: Too many writes wait.
        """
        await self.barrier.wait(_REPORTS_SECONDS)
        instance_ids, culprits = frozenset(death.instances), frozenset(death.culprits)

        def run(unit: Unit) -> list[tuple[TaskRecord, TaskRecord]]:
            held = unit.tasks.of_instances(instance_ids)
            unit.remove_instances(instance_ids)
            return [
                (task, _move_on(unit, task, death, charged=not culprits or task.task_id in culprits))
                for task in held
            ]

        for before, task in await self.writer.write(Command(run, Reads(instances=instance_ids))):
            logger.warning(
                "task %s has lost its instance %s (%s), because the process %s; it is %s now, attempt %d%s",
                task.task_id,
                before.instance_id,
                _count(before, task),
                death.reason,
                task.status.value,
                task.attempt,
                ", delayed" if lifecycle.is_held_back(task) else "",
                extra={"action": "process_died", "task_id": task.task_id},
            )


def _move_on(unit: Unit, task: TaskRecord, death: ProcessDeath, *, charged: bool) -> TaskRecord:
    if charged:
        return unit.lose(task, because=death.reason)
    return unit.apply(lifecycle.take_back(task, at=unit.now))


def _count(before: TaskRecord, task: TaskRecord) -> str:
    if task.losses == before.losses:
        return "not counted"
    return f"loss {task.losses} of at most {task.max_attempts}"
