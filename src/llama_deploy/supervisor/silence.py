"""Decides what to do about a child that is silent or blocked. Pure: without a clock, and without I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_LATE: Final = 1.5
"""After how many intervals without a heartbeat a child is silent."""
_PAUSE_SECONDS: Final = 3.0
"""If nobody has judged for so long, the supervisor was stopped, and perhaps the child with it."""


class Verdict(Enum):
    """What to do about a child."""

    FINE = auto()
    REPEAT = auto()
    """Send its last heartbeat again: it runs, but cannot do it."""
    REPLACE = auto()
    """It has been blocked for too long: kill it."""


@dataclass(slots=True)
class Silence:
    """How long one instance of a child has been silent or blocked. Times are monotonic, in seconds."""

    blocked_limit: float
    """For how long a child may be blocked."""
    interval: float = 0.0
    """Between two heartbeats."""
    _heard_at: float | None = None
    """When its last heartbeat came. None: it has sent none."""
    _blocked_since: float | None = None
    """Since when its event loop is blocked, as it says itself. None: it is not blocked."""
    _repeated_at: float = 0.0
    _judged_at: float = -math.inf
    _runs_since: float | None = None
    """Since when it runs without a pause, as far as is known. None: it did not run at the last look."""

    def heard(self, now: float, *, interval: float, blocked_seconds: float) -> None:
        """A heartbeat has come."""
        self.interval = interval
        self._heard_at = self._repeated_at = now
        self._blocked_since = now - blocked_seconds if blocked_seconds > 0 else None

    @property
    def is_stopped(self) -> bool:
        """Whether the operating system did not run it at the last look."""
        return self._runs_since is None and self._judged_at > -math.inf

    def is_silent(self, now: float) -> bool:
        """Whether a heartbeat is overdue."""
        return self._heard_at is not None and now - self._heard_at >= _LATE * self.interval

    def seconds(self, now: float) -> float:
        """For how long it has been blocked, or silent while it runs; 0 if it is neither."""
        if self._heard_at is None or self._runs_since is None:
            return 0.0
        if self._blocked_since is not None:
            return now - max(self._blocked_since, self._runs_since)
        return now - max(self._heard_at, self._runs_since) if self.is_silent(now) else 0.0

    def judge(self, now: float, *, is_running: bool) -> Verdict:
        """Return what to do.

        Args:
            now: The present time.
            is_running: Whether the operating system says that it runs, and is not stopped.
        """
        was_paused, self._judged_at = now - self._judged_at > _PAUSE_SECONDS, now
        if not is_running:
            # What another process has stopped must not look alive, and is not blocked.
            self._runs_since = None
            return Verdict.FINE
        if self._runs_since is None or was_paused:
            self._runs_since = now
        if self.seconds(now) >= self.blocked_limit:
            return Verdict.REPLACE
        if self.is_silent(now) and now - self._repeated_at >= self.interval:
            self._repeated_at = now
            return Verdict.REPEAT
        return Verdict.FINE

    def next_at(self) -> float | None:
        """Return when to judge again. None: when a heartbeat has come, or with all others."""
        if self._heard_at is None or self._runs_since is None:
            return None
        return max(self._heard_at + _LATE * self.interval, self._repeated_at + self.interval)
