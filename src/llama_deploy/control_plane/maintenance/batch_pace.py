"""How much one transaction removes, and how long others have the store for themselves after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

_QUICK_SECONDS: Final = 0.006
_SLOW_SECONDS: Final = 0.015
_MIN_TASKS: Final = 40
_MAX_TASKS: Final = 200
_REST: Final = 30.0
"""How much longer than a transaction the pause after it is: about one request in thirty waits for it."""
MIN_PAUSE: Final = 0.02
_MAX_PAUSE: Final = 1.0


@dataclass(slots=True)
class BatchPace:
    """Adapts to the store: a transaction that works for long is followed by a smaller one.

    The pause after it depends on the time in which it waited, too. So a busy store is left alone for longer.
    """

    tasks: int = 80
    """How many tasks the next transaction may remove."""
    pause: float = MIN_PAUSE
    """Seconds to wait before it."""
    hurried: bool = False
    """Whether somebody waits for the removal, so that pauses are shorter."""
    _begun: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """A transaction has got its turn. Called by the function that runs in it, in any thread."""
        self._begun = time.monotonic()

    def note(self, since: float) -> None:
        """A transaction is over that was submitted at a time of the monotonic clock."""
        now = time.monotonic()
        self.adapt(working=now - max(self._begun, since), waiting=now - since)

    def adapt(self, *, working: float, waiting: float) -> None:
        """A transaction has worked for so many seconds of those in which it was waited for."""
        if working < _QUICK_SECONDS:
            self.tasks = min(self.tasks * 3 // 2, _MAX_TASKS)
        elif working > _SLOW_SECONDS:
            self.tasks = max(self.tasks * 2 // 3, _MIN_TASKS)
        rest = _REST / 5 if self.hurried else _REST
        self.pause = min(max(rest * waiting, MIN_PAUSE), _MAX_PAUSE)
