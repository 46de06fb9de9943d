"""In which order the library gets to know the steps of a run that have ended.

The library takes the first task that is done, and lists steps in no order. In a fan-out, finished steps would
wait for steps that begin and end after them, and not be stored meanwhile. Events that were sent and the end
of the time limit, which come from outside of the steps, would wait for ever if steps end again and again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from llama_deploy.workflow_library import (
    AddCollectedEvent,
    NamedTask,
    PendingStart,
    PendingWorker,
    PullTask,
    StepId,
    TickStepResult,
)

MAX_DELAY: Final = 0.2
"""How many seconds what comes from outside waits for steps that have ended."""


class StepTurns:
    """The tasks of a run that have started and whose end the library does not know yet. Use it in the loop.

    Args:
        max_delay: See `MAX_DELAY`.
    """

    def __init__(self, *, max_delay: float = MAX_DELAY) -> None:
        self._max_delay = max_delay
        self._oldest_first: list[NamedTask] = []
        self._collecting: set[StepId] = set()
        """The steps that have collected an event."""
        self._came: tuple[asyncio.Task[Any], float] | None = None
        """What has come from outside, and when that was seen."""

    def add(self, started: Iterable[NamedTask]) -> None:
        """Add tasks that have started."""
        self._oldest_first += started

    def keep(self, running: Sequence[NamedTask]) -> None:
        """Remove all tasks but those that the library still waits for. It waits for no others."""
        if len(running) != len(self._oldest_first):
            still = {named.task for named in running}
            self._oldest_first = [named for named in self._oldest_first if named.task in still]

    def in_turn(self) -> list[NamedTask]:
        """Return the tasks in the order in which they are taken if they are done.

        Steps that collect come first: the library runs them again if another event was collected since they
        began. What comes from outside is last for a while, so that it does not delay what is to be stored.
        """
        overdue = self._find_overdue()
        ranks: tuple[list[NamedTask], ...] = ([], [], [], [])
        for each in self._oldest_first:
            if isinstance(each, PullTask):
                ranks[0 if each.task is overdue else 3].append(each)
            else:
                ranks[1 if each.step_id in self._collecting else 2].append(each)
        return [each for rank in ranks for each in rank]

    def next_ended(self) -> asyncio.Task[Any] | None:
        """Return the step that is taken next, or what has come from outside too long ago. None: nothing."""
        if (overdue := self._find_overdue()) is not None:
            return overdue
        first: asyncio.Task[Any] | None = None
        for each in self._oldest_first:
            if each.task.done() and not isinstance(each, PullTask):
                if each.step_id in self._collecting:
                    return each.task
                first = first or each.task
        return first

    def learn(self, result: TickStepResult) -> None:
        """Learn from the result of a step whether it collects events."""
        if any(isinstance(each, AddCollectedEvent) for each in result.result):
            self._collecting.add(result.step_id)

    def is_any_collecting(self, pending: Iterable[PendingStart]) -> bool:
        """Whether one of these steps collects events."""
        if not self._collecting:
            return False
        return any(isinstance(each, PendingWorker) and each.step_id in self._collecting for each in pending)

    def _find_overdue(self) -> asyncio.Task[Any] | None:
        """Return what has come from outside and has waited long enough. None: nothing."""
        for each in self._oldest_first:
            if isinstance(each, PullTask):
                pull = each.task
                break
        else:
            return None
        if not pull.done():
            return None
        now = asyncio.get_running_loop().time()
        if self._came is None or self._came[0] is not pull:
            self._came = pull, now
        return pull if now - self._came[1] >= self._max_delay else None
