"""What is to happen later, under one timer of the event loop."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Final, Protocol

_MIN_CANCELLED: Final = 256
"""Below this many cancelled alarms a clean-up costs more than it frees."""


class Timer(Protocol):
    """What `Clock.call_at` returns."""

    def cancel(self) -> None:
        """Do not call back."""


class Clock(Protocol):
    """The part of an asyncio event loop that tells the time, so that tests can bring a clock of their own."""

    def time(self) -> float:
        """Return the present time: seconds that never go back."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call `callback` at `when`."""
        ...


class Alarm:
    """One thing that is to happen. Made by `Timetable.add`."""

    __slots__ = ("ring",)

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring: Callable[[], object] | None = ring


class Timetable:
    """Alarms in the order of their time. However many there are, the loop holds one timer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._timer: Timer | None = None
        self._timer_at = 0.0

    def __len__(self) -> int:
        return len(self._alarms) - self._cancelled

    def now(self) -> float:
        """Return the clock's time."""
        return self._clock.time()

    def add(self, when: float, ring: Callable[[], object]) -> Alarm:
        """Call `ring` at `when`, by the clock. Alarms of the same time ring in the order of their making."""
        alarm = Alarm(ring)
        heapq.heappush(self._alarms, (when, next(self._numbers), alarm))
        if self._timer is None or when < self._timer_at:
            self._arm(when)
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """Take an alarm back. Harmless when it has rung or was cancelled before."""
        if alarm.ring is None:
            return
        alarm.ring = None
        self._cancelled += 1
        # Most alarms are cancelled long before their time. Without this they would fill the memory.
        if self._cancelled > _MIN_CANCELLED and self._cancelled * 2 > len(self._alarms):
            self._alarms = [item for item in self._alarms if item[2].ring is not None]
            heapq.heapify(self._alarms)
            self._cancelled = 0

    def close(self) -> None:
        """Forget all alarms. Idempotent."""
        self._alarms.clear()
        self._cancelled = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._clock.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._clock.time()
        while self._alarms and (self._alarms[0][0] <= now or self._alarms[0][2].ring is None):
            alarm = heapq.heappop(self._alarms)[2]
            if alarm.ring is None:
                self._cancelled -= 1
                continue
            ring, alarm.ring = alarm.ring, None
            ring()
        if self._alarms and (self._timer is None or self._alarms[0][0] < self._timer_at):
            self._arm(self._alarms[0][0])
