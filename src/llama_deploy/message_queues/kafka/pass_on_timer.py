"""When a member that asks for nothing passes on the messages that wait in its partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from llama_deploy.concurrency.backoff import Backoff

_DELAY: Final = Backoff(first=0.25, longest=2.0)


class PassOnTimer:
    """Fires while no caller waits for messages; less and less often until one does.

    Args:
        is_due: Whether there are messages to pass on.
        pass_on: Passes some on.
    """

    def __init__(self, *, is_due: Callable[[], bool], pass_on: Callable[[], None]) -> None:
        self._is_due = is_due
        self._pass_on = pass_on
        self._asking = 0
        """How many callers wait for messages."""
        self._fired = 0
        """How often it has fired since the last of them."""
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Do not fire while a caller waits."""
        self._asking += 1
        self._fired = 0
        self.stop()
        try:
            yield
        finally:
            self._asking -= 1

    def start(self) -> None:
        """Fire after a while, if there is something to pass on then."""
        if self._timer is None and not self._asking and self._is_due():
            delay = _DELAY.delay(self._fired + 1)
            self._timer = asyncio.get_running_loop().call_later(delay, self._fire)

    def stop(self) -> None:
        """Do not fire."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if not self._asking and self._is_due():
            self._fired += 1
            self._pass_on()
            self.start()
