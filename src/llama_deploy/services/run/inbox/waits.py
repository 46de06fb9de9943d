"""The time limits of `ctx.wait_for_event`, which the library forgets when a run is restored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeGuard

from pydantic import BaseModel

from llama_deploy.workflow_library import (
    AddWaiter,
    DeleteWaiter,
    StepId,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
)


class Wait(BaseModel):
    """A step that waits for an event until a point in time."""

    step: str
    waiter_id: str
    due: float
    """Seconds since 1970, the clock of the library's ticks. See `RunClock.now`."""

    def tick(self) -> WorkflowTick:
        """Return the tick that ends the wait. The run ignores it if the event has come."""
        return TickWaiterTimeout(step_id=StepId.from_str(self.step), waiter_id=self.waiter_id)


@dataclass(slots=True)
class Waits:
    """The time limits of a run's waiting steps, learnt from its ticks."""

    _waits: dict[tuple[str, str], Wait] = field(default_factory=dict)

    @classmethod
    def restore(cls, waits: Iterable[Wait]) -> Waits:
        """Return the waits of a snapshot."""
        return cls({(wait.step, wait.waiter_id): wait for wait in waits})

    def on_ticks(self, ticks: Iterable[WorkflowTick]) -> None:
        """See `on_tick`."""
        for tick in ticks:
            self.on_tick(tick)

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn from a tick which steps begin and end to wait."""
        if isinstance(tick, TickWaiterTimeout):
            self._waits.pop((str(tick.step_id), tick.waiter_id), None)
        if not isinstance(tick, TickStepResult):
            return
        step = str(tick.step_id)
        for result in tick.result:
            if isinstance(result, DeleteWaiter):
                self._waits.pop((step, result.waiter_id), None)
            elif isinstance(result, AddWaiter) and _is_limit(result.timeout) and tick.stamped_at is not None:
                due = tick.stamped_at + result.timeout
                # A step that runs again from its top keeps the time limit of its first wait.
                self._waits.setdefault(
                    (step, result.waiter_id), Wait(step=step, waiter_id=result.waiter_id, due=due)
                )

    def postpone(self, seconds: float) -> None:
        """Move all time limits, because the run did not exist for so long."""
        for place, wait in self._waits.items():
            self._waits[place] = wait.model_copy(update={"due": wait.due + seconds})

    def all(self) -> list[Wait]:
        """Return the waits, the nearest first."""
        return sorted(self._waits.values(), key=lambda wait: wait.due)

    def seconds_to_next(self, *, now: float) -> float | None:
        """Return the seconds until the nearest time limit. None: there is none.

        Args:
            now: The time of the run, see `RunClock.now`.
        """
        waits = self.all()
        return max(0.0, waits[0].due - now) if waits else None


def _is_limit(timeout: float | None) -> TypeGuard[float]:
    """Whether a time limit ends a wait; infinity, a common way to say "no limit", does not."""
    return timeout is not None and math.isfinite(timeout)
