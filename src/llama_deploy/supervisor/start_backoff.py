"""How long to wait before a child is started again that has ended before it was ready."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from llama_deploy.concurrency.backoff import Backoff

_BACKOFF: Final = Backoff(first=0.5, longest=30.0)


@dataclass(slots=True)
class StartBackoff:
    """Pauses after failed starts: longer after each one, until a child was ready. Times are monotonic."""

    _failures: int = field(default=0, init=False)
    """How many children have ended one after another before they were ready."""
    _next_at: float = field(default=0.0, init=False)

    def may_start(self, now: float) -> bool:
        """Whether the pause after the last failure is over."""
        return not self._failures or now >= self._next_at

    def failed(self, now: float) -> float:
        """A child was not started, or has ended before it was ready. Return how many seconds to wait."""
        self._failures += 1
        delay = _BACKOFF.delay(self._failures)
        self._next_at = now + delay
        return delay

    def succeeded(self) -> None:
        """A child was ready."""
        self._failures = 0
