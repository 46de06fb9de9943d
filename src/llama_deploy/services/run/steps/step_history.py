"""Which steps of an attempt run, which have ended, and what the run says of its progress."""

from __future__ import annotations

import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from llama_deploy.types.step_history import MAX_STEP_NAME, MAX_STEPS_OF_ROW, EndedSteps, StepEnd, encode_steps
from llama_deploy.types.task_lists import PresentStep

MAX_KEPT: Final = MAX_STEPS_OF_ROW
"""How many ended steps are kept until a report takes them; of more, the last ones."""
MAX_PRESENT: Final = 20
"""How many running steps a heartbeat names for each attempt."""


@dataclass(slots=True, eq=False)
class RunningStep:
    """A step that has begun, and perhaps ended."""

    name: str
    began: float
    """Seconds since 1970, by the clock of this machine."""
    events: int = 0
    """How many events it has streamed. The last ones may be counted when it has ended."""
    took: float = 0.0
    """How many seconds it ran, once it has ended."""
    error: str | None = None
    """The class of the exception that it has raised."""
    point: str | None = None
    """See `StepEnd.point`."""

    @property
    def end(self) -> StepEnd:
        """How it has ended."""
        return StepEnd(
            self.name[:MAX_STEP_NAME],
            int(self.began * 1000),
            int(self.took * 1000),
            self.events,
            self.error,
            self.point,
        )


current_step: ContextVar[RunningStep | None] = ContextVar("current_step", default=None)
"""The step to which what happens in this context belongs."""


@dataclass(slots=True, eq=False)
class StepHistory:
    """The steps of one attempt, in the order in which they end. Only `present` is thread-safe."""

    _count: int = 0
    """How many steps have ended."""
    _waiting: deque[RunningStep] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))
    """Those that no report has taken yet, the last ones."""
    _running: dict[int, RunningStep] = field(default_factory=dict)

    def begin(self, name: str, *, point: str | None = None) -> RunningStep:
        """A step begins in this context, when the journal of its run is at a point, see `StepEnd.point`."""
        step = RunningStep(name, time.time(), point=point)
        self._running[id(step)] = step
        current_step.set(step)
        return step

    def end(self, step: RunningStep, raised: BaseException | None = None) -> None:
        """A step has ended; `raised` is its exception."""
        del self._running[id(step)]
        step.took = max(0.0, time.time() - step.began)
        if raised is not None:
            step.error = type(raised).__name__[:MAX_STEP_NAME]
        self._count += 1
        self._waiting.append(step)

    def forget(self, step: RunningStep) -> None:
        """A step has not ended: it begins again later."""
        del self._running[id(step)]

    def untold(self) -> EndedSteps | None:
        """Return the steps that no report has taken. None: there are none."""
        if not self._waiting:
            return None
        return EndedSteps(
            first=self._count - len(self._waiting), steps=encode_steps(step.end for step in self._waiting)
        )

    def told(self, upto: int) -> None:
        """A report has taken the first `upto` steps of the attempt."""
        while self._waiting and self._count - len(self._waiting) < upto:
            self._waiting.popleft()

    @property
    def count(self) -> int:
        """How many steps have ended."""
        return self._count

    def present(self) -> list[PresentStep]:
        """Return the steps that run now."""
        running = list(self._running.values())[:MAX_PRESENT]
        return [
            PresentStep(step=step.name[:MAX_STEP_NAME], began_at=datetime.fromtimestamp(step.began, UTC))
            for step in running
        ]
