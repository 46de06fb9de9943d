"""Whether somebody reads a feed at another control plane."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

RENEW_SECONDS: Final = 5.0
"""How often a control plane whose feeds are read says so."""
_HOLDS_SECONDS: Final = 4 * RENEW_SECONDS


class FeedInterest:
    """Notes that other control planes want to know whose status changes.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.until: float | None = None
        """How long one of them wants to know it. None: none does."""

    def note(self) -> None:
        """Another control plane has said that its feeds are read."""
        self.until = self._clock() + _HOLDS_SECONDS

    def is_shown(self) -> bool:
        """Whether one has said so lately."""
        if self.until is not None and self.until < self._clock():
            self.until = None
        return self.until is not None
