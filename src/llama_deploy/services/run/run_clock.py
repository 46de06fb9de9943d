"""How long a run has been at work, and how long it only waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

_LEAST_PAUSE: Final = 1.0


@dataclass(slots=True)
class RunClock:
    """Counts the time in which a run works, without that in which it waits for something from outside.

    Time in which it is held up, and none of its steps is at work, does not count either. Rings when the run
    has worked as long as it may, or has waited so long that it can leave memory. It belongs to the running
    loop; `stop` it.

    Args:
        timeout: Seconds that the run may work, over all its attempts. None: without end.
        idle_timeout: Seconds that it may wait in memory. None: without end.
        on_timeout: Called once it has worked so long.
        on_idle: Called each time that it has waited so long.
        spent: Seconds that it has worked in earlier attempts.
    """

    timeout: float | None
    idle_timeout: float | None
    on_timeout: Callable[[], None]
    on_idle: Callable[[], None]
    spent: float = 0.0
    _is_working: bool = field(default=False, init=False)
    _holds: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _since: float | None = field(default=None, init=False)
    """From when on time counts that is not in `spent` yet. None: it does not count now."""
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _is_stopped: bool = field(default=False, init=False)
    is_waiting: bool = field(default=False, init=False)
    """Whether the run waits for something from outside."""

    def work(self) -> None:
        """The run works from now on. Idempotent."""
        if self._is_working:
            return
        self._is_working, self.is_waiting = True, False
        self._set(None, self.on_idle)
        self._count()

    def wait(self) -> None:
        """The run waits from now on. Idempotent."""
        if self.is_waiting:
            return
        self._is_working, self.is_waiting = False, True
        self._count()
        self._set(self.idle_timeout, self.on_idle)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this is open the run cannot go on, through no fault of its own."""
        self._holds += 1
        self._count()
        try:
            yield
        finally:
            self._holds -= 1
            self._count()

    def step_begins(self) -> None:
        """A step of the run is at work from now on."""
        self._steps += 1
        self._count()

    def step_ends(self) -> None:
        """A step of the run is at work no more."""
        self._steps -= 1
        self._count()

    def wait_again(self) -> None:
        """The run goes on waiting in memory, although `on_idle` was called; ring again later."""
        if self.idle_timeout is not None:
            self._set(max(self.idle_timeout, _LEAST_PAUSE), self.on_idle)

    def stop(self) -> None:
        """Ring no more. Idempotent."""
        self._is_stopped = True
        self._set(None, self.on_idle)
        # What a step has left behind may know this clock for long; it is not to keep the run in memory.
        self.on_timeout = self.on_idle = _ring_nothing

    @property
    def running_seconds(self) -> float:
        """How long the run has worked, over all its attempts."""
        since = self._since
        return self.spent if since is None else self.spent + time.monotonic() - since

    def _count(self) -> None:
        """Let time count from now on, or no more."""
        counts = self._is_working and (self._steps > 0 or not self._holds)
        if counts == (self._since is not None):
            return
        if not counts:
            # The timer stays, for most holds are short; it looks again when it rings.
            self.spent, self._since = self.running_seconds, None
            return
        self._since = time.monotonic()
        if self._timer is None:
            self._look()

    def _look(self) -> None:
        """Ring if the run has worked as long as it may, and else look again when it may have."""
        self._timer = None
        if self.timeout is None or self._since is None:
            return
        left = self.timeout - self.running_seconds
        if left > 0:
            self._set(left, self._look)
        else:
            self._set(0.0, self.on_timeout)

    def _set(self, delay: float | None, ring: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None and not self._is_stopped:
            self._timer = asyncio.get_running_loop().call_later(delay, ring)


def _ring_nothing() -> None:
    """The bell of a clock that was stopped."""
