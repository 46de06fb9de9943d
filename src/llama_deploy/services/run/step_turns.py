"""In which order the library gets to know the steps of a run that have ended.

The library takes the first task that is done, and lists steps in no order. In a fan-out, finished steps would
wait for steps that begin and end after them, and not be stored meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from llama_deploy.workflow_library import (
    AddCollectedEvent,
    NamedTask,
    PendingStart,
    PendingWorker,
    PullTask,
    StepId,
    TickStepResult,
)


class StepTurns:
    """The tasks of a run that have started and whose end the library does not know yet."""

    def __init__(self) -> None:
        self._oldest_first: list[NamedTask] = []
        self._collecting: set[StepId] = set()
        """The steps that have collected an event."""

    def add(self, started: Iterable[NamedTask]) -> None:
        """Add tasks that have started."""
        self._oldest_first += started

    def keep(self, running: Iterable[NamedTask]) -> None:
        """Remove all tasks but those that the library still waits for."""
        still = {named.task for named in running}
        self._oldest_first = [named for named in self._oldest_first if named.task in still]

    def in_turn(self) -> list[NamedTask]:
        """Return the tasks in the order in which they are taken if they are done.

        Steps that collect come first: the library runs them again if another event was collected since they
        began. What comes from outside is last, so that it does not delay what is to be stored.
        """
        return sorted(self._oldest_first, key=self._rank)

    def next_ended(self) -> asyncio.Task[Any] | None:
        """Return the step that is taken next. None: no step has ended."""
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

    def _rank(self, named: NamedTask) -> int:
        if isinstance(named, PullTask):
            return 2
        return int(named.step_id not in self._collecting)
