"""What each Ctrl-C and SIGTERM means, and what the user is told."""

from __future__ import annotations

import signal
import time
from typing import Final

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""
HAND_BACK: Final = 2
"""How often Ctrl-C is pressed to hand back running tasks; once more ends the process at once."""


class Presses:
    """Counts how often the user has pressed Ctrl-C."""

    def __init__(self) -> None:
        self.count = 0
        self._last = 0.0

    def add(self) -> int | None:
        """Return how often; None if this one counts together with the one before."""
        now = time.monotonic()
        if self.count and now - self._last < _SAME_PRESS_SECONDS:
            return None
        self.count += 1
        self._last = now
        return self.count


def draining(signum: int) -> str:
    """Return what to print after the first signal."""
    hint = "" if signum == signal.SIGTERM else " Press Ctrl-C again to hand them back now."
    return f"Waiting for running tasks, then stopping.{hint}"


HANDING_BACK: Final = "Handing back the running tasks. Press Ctrl-C again to exit now."
"""What to print after the second Ctrl-C."""
