"""How much of its time limit a run has used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Final

NOTE_SECONDS: Final = 5.0
"""How much of its time limit a run may get again if its instance dies."""


@dataclass(slots=True, eq=False)
class TimeBudget:
    """Measures time while it is counted, and calls back when the limit is reached.

    Use it in the running loop, and `stop` it. `limit` and `seconds` may be read in any thread.

    Args:
        limit: Seconds that may be used, over all attempts of the run. None: without limit.
        on_over: Called once, when they are used up.
        used: Seconds that earlier attempts have used.
        on_progress: Called each time that another `NOTE_SECONDS` of a limit are used.
    """

    limit: float | None
    on_over: Callable[[], None]
    used: InitVar[float] = 0.0
    on_progress: Callable[[], None] | None = None
    _noted: float = field(init=False)
    """What `seconds` was when `on_progress` was called."""
    _measured: tuple[float, float | None] = field(init=False)
    """The seconds used, and since when time counts that is not among them. None: time does not count now.
    One value, because other threads read it."""
    _timer: asyncio.Handle | None = field(default=None, init=False)
    """It stays when the limit was reached, so that `on_over` is called once."""
    _is_stopped: bool = field(default=False, init=False)

    def __post_init__(self, used: float) -> None:
        """Earlier attempts have noted what they have used."""
        self._noted = used
        self._measured = (used, None)

    @property
    def seconds(self) -> float:
        """How many seconds are used, over all attempts of the run."""
        used, since = self._measured
        return used if since is None else used + time.monotonic() - since

    def count(self, *, counts: bool) -> None:
        """Count the time from now on, or do not. Idempotent."""
        used, since = self._measured
        if counts == (since is not None):
            return
        if not counts:
            # The timer stays, because most pauses are short. It checks again when it fires.
            self._measured = (self.seconds, None)
            return
        self._measured = (used, time.monotonic())
        if self._timer is None:
            self._check()

    def stop(self) -> None:
        """Stop calling back. Idempotent."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # its context refers to what counts this run
        # Something that a step has left running may refer to this; it must not keep the run in memory.
        self.on_over, self.on_progress = _do_nothing, None

    def _check(self) -> None:
        """Call back if the limit is reached, else check again when it can be."""
        self._timer = None
        if self.limit is None or self._measured[1] is None or self._is_stopped:
            return
        loop, used = asyncio.get_running_loop(), self.seconds
        if used >= self.limit:
            self._timer = loop.call_soon(self.on_over)
            return
        if used - self._noted >= NOTE_SECONDS and self.on_progress is not None:
            self._noted = used
            self.on_progress()
        self._timer = loop.call_later(min(self.limit - used, NOTE_SECONDS), self._check)


def _do_nothing() -> None:
    """Replaces the callback of a stopped budget."""
