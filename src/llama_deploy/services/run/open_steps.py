"""Which steps of a run would run again if its instance were lost now, and where their events begin."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class OpenSteps:
    """The steps of an attempt that have begun and whose end is not stored.

    Events are counted from the beginning of the attempt.
    """

    _running: dict[Hashable, int] = field(default_factory=dict)
    """How many events were streamed when each step began, the oldest first."""
    _ended: list[int | None] = field(default_factory=list)
    """The same for steps whose end is not stored, in the order of their ends. None: it is not known."""

    def begin(self, step: Hashable, *, streamed: int) -> None:
        """A step begins after `streamed` events."""
        self._running.setdefault(step, streamed)

    def end(self, step: Hashable) -> None:
        """A step has ended. This is not stored yet."""
        self._ended.append(self._running.pop(step, None))

    def first_event(self, *, streamed: int, storing: int = 0) -> int:
        """Return the number of the first event that may be streamed again.

        Args:
            streamed: How many events were streamed: the answer if nothing is streamed again.
            storing: How many ends are about to be stored.
        """
        begun = [streamed, *(each for each in self._ended[storing:] if each is not None)]
        if self._running:
            begun.append(next(iter(self._running.values())))
        return min(begun)

    def stored(self, count: int) -> None:
        """The next `count` ends are stored."""
        del self._ended[:count]
