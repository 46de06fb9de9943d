"""Measures how long a run works and how long it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

_MIN_PAUSE: Final = 1.0
NOTE_SECONDS: Final = 5.0
"""How much of its time limit a run may get again if its instance dies."""
_STALL_SECONDS: Final = 60.0
"""How long a run may be stuck that has neither a time limit nor an `idle_timeout`."""


@dataclass(slots=True)
class RunClock:
    """Measures the time in which a run works, without the time in which it waits for something from outside.

    Time in which the run is held up while none of its steps is running does not count either. Calls back when
    the run has used up its time limit, or has waited so long that it can leave memory. A run that is stuck
    uses up its time limit too, and `idle_timeout` if it has none. Use it in the running loop, and `stop` it.

    Args:
        timeout: Seconds that the run may work, over all its attempts. None: without limit.
        idle_timeout: Seconds that it may wait in memory. None: without limit.
        on_timeout: Called once, when `timeout` is over. Without one: when the run was stuck for so long.
        on_idle: Called each time that the run has waited for `idle_timeout`.
        spent: Seconds that the run has worked in earlier attempts.
        on_progress: Called each time that a run with a time limit has worked for `NOTE_SECONDS`.
    """

    timeout: float | None
    idle_timeout: float | None
    on_timeout: Callable[[], None]
    on_idle: Callable[[], None]
    spent: float = 0.0
    on_progress: Callable[[], None] | None = None
    _noted: float = field(init=False)
    """What `running_seconds` was when `on_progress` was called."""
    _zero: float = field(default_factory=lambda: time.time() - time.monotonic(), init=False)
    """What the wall clock showed when this clock was made, less the monotonic time."""
    _is_working: bool = field(default=False, init=False)
    _is_stuck: bool = field(default=False, init=False)
    _holds: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _since: float | None = field(default=None, init=False)
    """Since when time counts that is not in `spent` yet. None: time does not count now."""
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _is_stopped: bool = field(default=False, init=False)
    is_waiting: bool = field(default=False, init=False)
    """Whether the run waits for something from outside."""

    def __post_init__(self) -> None:
        """Earlier attempts have noted what they have worked."""
        self._noted = self.spent

    def work(self) -> None:
        """The run works from now on. Idempotent."""
        if self._is_stuck and self.timeout is None:
            self._set(None, self.on_timeout)
        self._is_stuck = False
        if self._is_working:
            return
        self._is_working, self.is_waiting = True, False
        self._set(None, self.on_idle)
        self._count()

    def wait(self) -> None:
        """The run waits from now on. Idempotent."""
        if self.is_waiting:
            return
        self._is_working, self._is_stuck, self.is_waiting = False, False, True
        self._count()
        self._set(self.idle_timeout, self.on_idle)

    def stall(self) -> None:
        """The run is stuck from now on: no step is running, and it waits for nothing. Idempotent."""
        if self._is_stuck:
            return
        self.work()
        self._is_stuck = True
        if self.timeout is None:
            limit = _STALL_SECONDS if self.idle_timeout is None else self.idle_timeout
            self._set(max(limit, _MIN_PAUSE), self.on_timeout)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this context is open, the run cannot continue for an external reason."""
        self._holds += 1
        self._count()
        try:
            yield
        finally:
            self._holds -= 1
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
            self._set(max(self.idle_timeout, _MIN_PAUSE), self.on_idle)

    def stop(self) -> None:
        """Stop calling back. Idempotent."""
        self._is_stopped = True
        self._set(None, self.on_idle)
        # Something that a step has left running may refer to this clock; it must not keep the run in memory.
        self.on_timeout = self.on_idle = _do_nothing
        self.on_progress = None

    def now(self) -> float:
        """Return the time in seconds since 1970, as the library needs it for what it stores.

        It is the wall clock's at the beginning of the attempt, and advances steadily from there: setting the
        wall clock does not move the retries and time limits of a run.
        """
        return self._zero + time.monotonic()

    @property
    def running_seconds(self) -> float:
        """How long the run has worked, over all its attempts."""
        since = self._since
        return self.spent if since is None else self.spent + time.monotonic() - since

    def _count(self) -> None:
        """Start or stop counting time."""
        counts = self._is_working and (self._steps > 0 or not self._holds)
        if counts == (self._since is not None):
            return
        if not counts:
            # The timer stays, because most holds are short. It checks again when it fires.
            self.spent, self._since = self.running_seconds, None
            return
        self._since = time.monotonic()
        if self._timer is None:
            self._check()

    def _check(self) -> None:
        """Call back if the time limit is over, else check again when it can be."""
        self._timer = None
        if self.timeout is None or self._since is None:
            return
        worked = self.running_seconds
        if worked >= self.timeout:
            self._set(0.0, self.on_timeout)
            return
        if worked - self._noted >= NOTE_SECONDS and self.on_progress is not None:
            self._noted = worked
            self.on_progress()
        self._set(min(self.timeout - worked, NOTE_SECONDS), self._check)

    def _set(self, delay: float | None, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None and not self._is_stopped:
            self._timer = asyncio.get_running_loop().call_later(delay, callback)


def _do_nothing() -> None:
    """Replaces the callbacks of a stopped clock."""
