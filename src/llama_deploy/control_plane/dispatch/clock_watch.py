"""Notices that the system clock was set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

_SMALLEST_JUMP: Final = timedelta(seconds=1)
"""Less is drift, and does not matter to leases."""


@dataclass(slots=True, eq=False)
class ClockWatch:
    """Compares the clock with time that cannot be set.

    Leases and delays are stored as times of the clock, because other control planes and later ones read them.
    """

    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    steady: Callable[[], float] = time.monotonic
    """Returns seconds that never go back."""
    _last: tuple[datetime, float] = field(init=False)

    def __post_init__(self) -> None:
        """Begin now."""
        self._last = self.clock(), self.steady()

    def jump(self) -> timedelta:
        """Return how far the clock was set since the last jump: negative for back, zero for not at all."""
        now, steady = self.clock(), self.steady()
        jumped = now - self._last[0] - timedelta(seconds=steady - self._last[1])
        if abs(jumped) < _SMALLEST_JUMP:
            return timedelta()
        self._last = now, steady
        return jumped
