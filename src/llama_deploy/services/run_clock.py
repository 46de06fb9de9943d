"""How long a run has been at work, and how long it only waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

_LEAST_PAUSE: Final = 1.0


@dataclass(slots=True)
class RunClock:
    """Counts the time in which a run works, without that in which it waits for something from outside.

    Rings when the run has worked as long as it may, or has waited so long that it can leave memory.
    It belongs to the running loop; `stop` it.

    Args:
        timeout: Seconds that the run may work, over all its attempts. None: without end.
        idle_timeout: Seconds that it may wait in memory. None: without end.
        on_timeout: Called once it has worked so long.
        on_idle: Called each time that it has waited so long.
        spent: Seconds that it has worked in earlier attempts.
    """

    timeout: float | None
    idle_timeout: float | None
    on_timeout: Callable[[], None]
    on_idle: Callable[[], None]
    spent: float = 0.0
    _since: float | None = field(default=None, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    is_waiting: bool = field(default=False, init=False)
    """Whether the run waits for something from outside."""

    def work(self) -> None:
        """The run works from now on. Idempotent."""
        if self._since is not None:
            return
        self.is_waiting = False
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._set(None if self.timeout is None else max(0.0, self.timeout - self.spent), self.on_timeout)

    def wait(self) -> None:
        """The run waits from now on. Idempotent."""
        if self.is_waiting:
            return
        self.spent, self._since = self.running_seconds, None
        self.is_waiting = True
        self._set(self.idle_timeout, self.on_idle)

    def wait_again(self) -> None:
        """The run goes on waiting in memory, although `on_idle` was called; ring again later."""
        if self.idle_timeout is not None:
            self._set(max(self.idle_timeout, _LEAST_PAUSE), self.on_idle)

    def stop(self) -> None:
        """Ring no more. Idempotent."""
        self._set(None, self.on_idle)

    @property
    def running_seconds(self) -> float:
        """How long the run has worked, over all its attempts."""
        since = self._since
        return self.spent if since is None else self.spent + asyncio.get_running_loop().time() - since

    def _set(self, delay: float | None, ring: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay is None else asyncio.get_running_loop().call_later(delay, ring)
