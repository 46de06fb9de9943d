"""Moving on the tasks of a process that has died, all of them in one transaction."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from llama_deploy.control_plane.decisions import deaths, lifecycle
from llama_deploy.control_plane.decisions.deaths import Blame, Waiting
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.state_stores.records import InstanceRecord, TaskRecord
from llama_deploy.types.instance_protocol import HeldAttempt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MovedTask:
    """What the death of its process made of a task."""

    before: TaskRecord
    task: TaskRecord
    blame: Blame

    def log(self, because: str, *, action: str) -> None:
        """Log it. `because` follows the name of the instance."""
        task = self.task
        logger.warning(
            "task %s has lost its instance %s (%s), %s; it is %s now, attempt %d%s",
            task.task_id,
            self.before.instance_id,
            self._count,
            because,
            task.status.value,
            task.attempt,
            self._next,
            extra={"action": action, "task_id": task.task_id},
        )

    @property
    def _count(self) -> str:
        if self.blame is Blame.SPARED or self.task.deaths == self.before.deaths:
            return "not counted"
        if self.blame is Blame.PRESENT:
            return "not charged: it was not alone in its process"
        return f"charge {self.task.losses} of at most {self.task.max_attempts}"

    @property
    def _next(self) -> str:
        if self.task.status.is_terminal:
            return ""
        delayed = ", delayed" if lifecycle.is_held_back(self.task) else ""
        if deaths.is_suspect(self.task):
            return f"{delayed}, to run alone in a process: {self.task.deaths} of its processes have died"
        return delayed


def waiting_text(held: Iterable[HeldAttempt]) -> str | None:
    """Return which attempts of a heartbeat only wait, as `InstanceRecord.waiting` keeps it."""
    waiting = [(each.task_id, each.attempt, each.inbox_seq) for each in held if each.waits]
    return json.dumps(waiting) if waiting else None


def move_on(
    unit: Unit,
    dead: Collection[InstanceRecord],
    *,
    alive: Collection[str] = (),
    culprits: AbstractSet[str] = frozenset(),
    because: str | None = None,
) -> Sequence[MovedTask]:
    """Give the tasks of one process their next attempts. All instances have to be declared.

    Args:
        unit: The transaction.
        dead: Its instances that are gone.
        alive: The ids of others of the process that are not. Their runs that only wait do not count either.
        culprits: The tasks that are known to be to blame. Empty: not known.
        because: How the process ended, in words that follow `the process`. None: not known.
    """
    held = unit.tasks.of_instances([instance.instance_id for instance in dead])
    if not held:
        return []
    living = [instance for each in alive if (instance := unit.instances.find(each)) is not None]
    blame = deaths.judge(
        held,
        waiting=_waiting([*dead, *living]),
        culprits=culprits,
        neighbours=unit.tasks.of_instances(alive),
    )
    return [
        MovedTask(task, unit.move_on(task, blame[task.task_id], because=because), blame[task.task_id])
        for task in held
    ]


def _waiting(instances: Iterable[InstanceRecord]) -> Waiting:
    texts = [instance.waiting for instance in instances if instance.waiting is not None]
    return {(task_id, attempt): seq for text in texts for task_id, attempt, seq in json.loads(text)}
