"""How long to wait before the next attempt: longer after each failure, up to a limit. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MAX_STEPS: Final = 2**53
"""No float grows after so many steps, and a larger count might not fit into a float."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that grow by `factor`: `first`, `first * factor`, and so on, at most `longest`."""

    first: float
    """Seconds after the first failure."""
    longest: float
    """Seconds that no pause exceeds."""
    factor: float = 2.0
    """By how much each pause is longer than the one before; at least 1."""

    def delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row, from 1; fewer count as 1.

        Any count is safe: where the growth would exceed all numbers, the pause is `longest`.
        """
        steps = min(max(failures - 1, 0), _MAX_STEPS)
        try:
            return float(min(self.first * float(self.factor) ** steps, self.longest))
        except OverflowError:
            return float(self.longest)
