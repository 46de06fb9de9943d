"""Knows when a run works, waits or is stuck, and how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from llama_deploy.services.run.time_budget import TimeBudget

MIN_PAUSE: Final = 1.0
"""The shortest time that a run is stuck or waits again, in seconds."""
_STALL_SECONDS: Final = 60.0
"""How long a run may be stuck that has neither a time limit nor an `idle_timeout`."""


class _State(Enum):
    NEW = auto()
    WORKING = auto()
    STUCK = auto()
    """No step is running, and the run waits for nothing."""
    WAITING = auto()
    """The run waits for something from outside."""


@dataclass(slots=True, eq=False)
class RunClock:
    """Counts the time in which a run works, without the time in which it waits for something from outside.

    Time in which the run is held up while none of its steps is running does not count either. Calls back when
    the run has waited so long that it can leave memory. A run that is stuck uses up its time limit too, and
    `idle_timeout` if it has none. Use it in the running loop, and `stop` it.

    Args:
        budget: The time limit of the run.
        idle_timeout: Seconds that it may wait in memory. None: without limit.
        on_idle: Called each time that the run has waited for `idle_timeout`.
        on_stuck: Called when a run without a time limit was stuck for so long.
    """

    budget: TimeBudget
    idle_timeout: float | None
    on_idle: Callable[[], None]
    on_stuck: Callable[[], None]
    _zero: float = field(default_factory=lambda: time.time() - time.monotonic(), init=False)
    """What the wall clock showed when this clock was made, less the monotonic time."""
    _state: _State = field(default=_State.NEW, init=False)
    _holds: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    """Ends a state in which the run does not work."""
    _is_stopped: bool = field(default=False, init=False)

    @property
    def is_waiting(self) -> bool:
        """Whether the run waits for something from outside."""
        return self._state is _State.WAITING

    def work(self) -> None:
        """The run works from now on. Idempotent."""
        self._enter(_State.WORKING)

    def wait(self) -> None:
        """The run waits from now on. Idempotent."""
        if self._enter(_State.WAITING) and self.idle_timeout is not None:
            self._call_later(self.idle_timeout, self.on_idle)

    def stall(self) -> None:
        """The run is stuck from now on: no step is running, and it waits for nothing. Idempotent."""
        if self._enter(_State.STUCK) and self.budget.limit is None:
            limit = _STALL_SECONDS if self.idle_timeout is None else self.idle_timeout
            self._call_later(max(limit, MIN_PAUSE), self.on_stuck)

    def held(self) -> Hold:
        """While this context is open, the run cannot continue for an external reason."""
        return Hold(self)

    def hold(self, change: int) -> None:
        """Note that a `Hold` begins (1) or ends (-1)."""
        self._holds += change
        self._count()

    def step_begins(self) -> None:
        """A step of the run has started."""
        self._steps += 1
        self._count()

    def step_ends(self) -> None:
        """A step of the run has ended."""
        self._steps -= 1
        self._count()

    def wait_again(self) -> None:
        """The run stays in memory although `on_idle` was called. Call `on_idle` again later."""
        if self.idle_timeout is not None:
            self._call_later(max(self.idle_timeout, MIN_PAUSE), self.on_idle)

    def stop(self) -> None:
        """Stop calling back. Idempotent."""
        self._is_stopped = True
        self._cancel_timer()
        self.budget.stop()
        # Something that a step has left running may refer to this clock; it must not keep the run in memory.
        self.on_idle = self.on_stuck = _do_nothing

    def now(self) -> float:
        """Return the time in seconds since 1970, as the library needs it for what it stores.

        It is the wall clock's at the beginning of the attempt, and advances steadily from there: setting the
        wall clock does not move the retries and time limits of a run.
        """
        return self._zero + time.monotonic()

    @property
    def running_seconds(self) -> float:
        """How long the run has worked, over all its attempts."""
        return self.budget.seconds

    def _enter(self, state: _State) -> bool:
        """Enter a state; return whether the run was in another one."""
        if self._state is state:
            return False
        self._state = state
        self._cancel_timer()
        self._count()
        return True

    def _count(self) -> None:
        can_work = self._state in (_State.WORKING, _State.STUCK)
        self.budget.count(counts=can_work and (self._steps > 0 or not self._holds))

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._cancel_timer()
        if not self._is_stopped:
            self._timer = asyncio.get_running_loop().call_later(seconds, callback)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(slots=True)
class Hold:
    """A context in which a run cannot continue; every tick of a run opens one."""

    clock: RunClock

    def __enter__(self) -> None:
        self.clock.hold(1)

    def __exit__(self, *_: object) -> None:
        self.clock.hold(-1)


def _do_nothing() -> None:
    """Replaces the callbacks of a stopped clock."""
