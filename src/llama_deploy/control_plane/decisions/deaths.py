"""Who is to blame for the death of a process, and who runs alone from then on. No I/O, no clock.

Processes die, not instances: the instances of one process are judged together. A task that worked alone in
its process is charged with its death. If several worked there, nobody knows which one was to blame, and none
is charged; but each was *present*. A task that was present at two deaths is a *suspect*: it runs alone in a
process, so that the next death shows whether it is to blame. Runs that only wait do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from enum import Enum, auto
from hashlib import blake2b
from typing import Final, TypeAlias

from llama_deploy.state_stores.records import SUSPECT_DEATHS, TaskRecord

MAX_ALONE: Final = 3
"""How many instances at most run the same suspects alone at the same time, unless more offer it."""

Waiting: TypeAlias = Mapping[tuple[str, int], int]
"""Attempts, each a task id and a number, that only wait, with the last inbox entry that they have seen."""


class Blame(Enum):
    """What the death of its process means for a task."""

    CHARGED = auto()
    """It was to blame: this counts against `max_attempts`."""
    PRESENT = auto()
    """It, or one of the others, was to blame."""
    SPARED = auto()
    """It was not to blame."""


def is_suspect(task: TaskRecord) -> bool:
    """Whether the attempts of a task run alone in a process."""
    return task.deaths >= SUSPECT_DEATHS


def only_waits(task: TaskRecord, waiting: Waiting) -> bool:
    """Whether a task only waited when its process died: no event had come that its run had not seen."""
    seen = waiting.get((task.task_id, task.attempt))
    return seen is not None and task.inbox_length <= seen


def judge(
    held: Collection[TaskRecord],
    *,
    waiting: Waiting,
    culprits: AbstractSet[str] = frozenset(),
    neighbours: Collection[TaskRecord] = (),
) -> dict[str, Blame]:
    """Return who is to blame for the death of a process, by task.

    Args:
        held: The tasks that it ran.
        waiting: Those that only waited.
        culprits: The tasks that are known to be to blame, even if they have ended. Empty: not known.
        neighbours: Other tasks of the process, which live on: of its instances, only some were silent.
    """
    if culprits:
        return {task.task_id: Blame.CHARGED if task.task_id in culprits else Blame.SPARED for task in held}
    working = {task.task_id for task in (*held, *neighbours) if not only_waits(task, waiting)}
    blame = Blame.CHARGED if len(working) == 1 else Blame.PRESENT
    return {task.task_id: blame if task.task_id in working else Blame.SPARED for task in held}


def judged_at(end: datetime, others: Iterable[datetime], *, patience: timedelta) -> datetime:
    """Return when an instance whose lease ends is judged.

    Args:
        end: The end of its lease.
        others: The ends of the leases of the other instances of its process, which die with it.
        patience: How long to wait for them.
    """
    return min(max([end, *others]), end + patience)


def asked(
    candidates: Mapping[str, str | None],
    *,
    suspects: Mapping[frozenset[str | None], int],
    alone: Collection[str | None],
    turn: int,
) -> Mapping[str, int]:
    """Return the instances of a service that are asked to have a suspect run alone. Each turn asks others.

    Args:
        candidates: The versions of the living instances that take other tasks, by their ids.
        suspects: How many suspects wait, by the versions that can run them.
        alone: The versions of the instances that run suspects alone already, or are about to.
        turn: The number of the turn.

    Returns:
        How many suspects wait that it can run, by the ids of the instances. Nobody is asked for suspects that
        none of them can run.
    """

    def place(instance_id: str) -> bytes:
        return blake2b(f"{turn} {instance_id}".encode(), digest_size=8).digest()

    counts: Counter[str] = Counter()
    in_turn = sorted(candidates, key=place)
    for versions, count in suspects.items():
        fitting = [each for each in in_turn if candidates[each] in versions]
        provided = sum(each in versions for each in alone) + sum(each in counts for each in fitting)
        wanted = max(0, min(count, MAX_ALONE) - provided)
        counts.update(dict.fromkeys([each for each in fitting if each not in counts][:wanted], 0))
    for instance_id in counts:
        counts[instance_id] = sum(
            n for versions, n in suspects.items() if candidates[instance_id] in versions
        )
    return counts
