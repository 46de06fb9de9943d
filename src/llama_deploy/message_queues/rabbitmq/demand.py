"""How many messages the callers of `receive` want, now and in the next moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

HOLD_SECONDS: Final = 0.05
"""How long an acknowledgement waits for room, and how long room waits for the next `receive`."""


class Demand:
    """Counts what callers ask for, and keeps for a moment what the last of them did not get.

    Args:
        on_change: Called when the demand changes.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.asked = 0
        """How many messages the waiting callers ask for."""
        self._kept = 0
        """How many the last caller did not get: it asks for them again at once, or never."""
        self._timer: asyncio.TimerHandle | None = None
        self._on_change = on_change

    def total(self) -> int:
        """Return how many messages may come."""
        return self.asked or self._kept

    def ask(self, count: int) -> None:
        """A caller begins to wait."""
        self.asked += count
        self._on_change()

    def withdraw(self, count: int) -> None:
        """The caller waits no longer."""
        self.asked -= count
        self.keep(count)

    def keep(self, count: int) -> None:
        """Keep the demand of a caller for a moment, in which it may call again."""
        self._kept = count
        self.close()
        self._timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._forget)
        self._on_change()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _forget(self) -> None:
        self._kept = 0
        self._on_change()
