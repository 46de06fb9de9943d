"""How often a run has asked under the same name, so that each of its questions has an id of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel

from llama_deploy.workflow_library import (
    AddWaiter,
    DeleteWaiter,
    StepWorkerResult,
    TickStepResult,
    WorkflowTick,
    stable_waiter_id,
)


class AskedCount(BaseModel):
    """How often a step has waited under a `waiter_id` that the workflow has chosen."""

    step: str
    waiter_id: str
    count: int
    is_open: bool
    """Whether the step has not ended since."""


def has_ended(tick: TickStepResult) -> bool:
    """Whether a step has returned."""
    return any(isinstance(each, StepWorkerResult) for each in tick.result)


@dataclass(slots=True)
class AskedCounts:
    """The counts of a run, learnt from its ticks. Ids that the library has chosen are unique anyway."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _open: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def restore(cls, counts: Iterable[AskedCount]) -> AskedCounts:
        """Return the counts of a snapshot."""
        known = {(each.step, each.waiter_id): each for each in counts}
        return cls(
            {key: each.count for key, each in known.items()},
            {key for key, each in known.items() if each.is_open},
        )

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn which steps begin and end to wait."""
        if not isinstance(tick, TickStepResult):
            return
        for result in tick.result:
            if isinstance(result, AddWaiter):
                if not stable_waiter_id(result.waiter_id)[1]:
                    key = str(tick.step_id), result.waiter_id
                    self._counts[key] = self._counts.get(key, 0) + (key not in self._open)
                    self._open.add(key)
            elif isinstance(result, DeleteWaiter) and has_ended(tick):
                self._open.discard((str(tick.step_id), result.waiter_id))

    def of(self, step: str, waiter_id: str) -> int:
        """Return how often a step has begun to wait under a name; 0 for an id that the library has chosen."""
        return self._counts.get((step, waiter_id), 0)

    def all(self) -> list[AskedCount]:
        """Return the counts."""
        return [
            AskedCount(step=step, waiter_id=waiter_id, count=count, is_open=(step, waiter_id) in self._open)
            for (step, waiter_id), count in self._counts.items()
        ]
