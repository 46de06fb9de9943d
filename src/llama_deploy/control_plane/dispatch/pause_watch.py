"""Notices that this process was paused, or its event loop blocked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

logger = logging.getLogger(__name__)

_LATE_FACTOR: Final = 2
"""How many intervals may pass between two looks before that counts as a pause."""
_MAX_PAUSES: Final = 1000
"""How many pauses are kept. The oldest are forgotten; by then the leases of their time have ended."""
_LOGGED_SECONDS: Final = 1.0
"""A pause of this length is logged."""


@dataclass(slots=True, eq=False)
class PauseWatch:
    """Measures the time in which this process could not receive anything, wherever it was held up.

    A task looks at the time again and again. If a look is late, or none has come when someone asks, nothing
    else had its turn either, whatever blocked the event loop.
    """

    interval: float
    """Seconds between two looks."""
    steady: Callable[[], float] = time.monotonic
    """Returns seconds that never go back."""
    _looked_at: float = field(init=False)
    _pauses: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_PAUSES), init=False)
    """Beginning and end of each pause."""

    def __post_init__(self) -> None:
        """Begin now."""
        self._looked_at = self.steady()

    async def run(self) -> None:
        """Look until cancelled."""
        self._looked_at = self.steady()
        while True:
            await asyncio.sleep(self.interval)
            self.look()

    def look(self) -> None:
        """Note a pause if the last look was too long ago."""
        begin, self._looked_at = self._looked_at, self.steady()
        seconds = self._looked_at - begin
        if seconds <= _LATE_FACTOR * self.interval:
            return
        if seconds >= _LOGGED_SECONDS:
            logger.warning(
                "this process was paused, or its event loop blocked, for %.1f s; leases end later by that",
                seconds,
                extra={"action": "paused"},
            )
        if self._pauses and self._pauses[-1][1] == begin:
            begin, _ = self._pauses.pop()
        self._pauses.append((begin, self._looked_at))

    def paused_within(self, seconds: float) -> float:
        """Return how many of the last `seconds` were pauses."""
        self.look()
        start = self.steady() - seconds
        return sum(end - max(begin, start) for begin, end in self._pauses if end > start)
