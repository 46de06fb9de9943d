"""How many bytes all readers of streams hold in memory together.

A reader holds a page from when it is read until its client has taken it. When half of the budget is used,
pages become small; when all of it is used, readers wait until others have sent their pages. Clients may stop
reading without closing their connections, so that nobody else would get anything: therefore a reader that has
waited gets a tiny page.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

PAGE_BYTES: Final = 1024 * 1024
"""With how much data of events a page is full. So a reader holds as much in memory, and one event more."""
SMALL_PAGE_BYTES: Final = 64 * 1024
TINY_PAGE_BYTES: Final = 4 * 1024
"""The page of a reader for which there was no room."""
MAX_BYTES: Final = 64 * 1024 * 1024
"""The pages of all readers of one control plane."""


class PageBudget:
    """The pages of all readers.

    Args:
        max_bytes: How large they may be together. Each may exceed it by its last event, and tiny pages
            together by a quarter.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.held_bytes = 0

    def share(self) -> PageShare:
        """Return the share of one more reader. Close it at its end."""
        return PageShare(self)

    def take(self) -> int:
        """Return how large the next page may be, which counts from now on; 0 if there is no room."""
        if self.held_bytes >= self._max_bytes:
            return 0
        size = PAGE_BYTES if self.held_bytes < self._max_bytes / 2 else SMALL_PAGE_BYTES
        self.held_bytes += size
        return size

    def take_tiny(self) -> int:
        """Return the size of a tiny page, which counts from now on; 0 if there is no room even for that."""
        if self.held_bytes >= 1.25 * self._max_bytes:
            return 0
        self.held_bytes += TINY_PAGE_BYTES
        return TINY_PAGE_BYTES

    def give_back(self, size: int) -> None:
        """So many bytes are not in memory any more."""
        self.held_bytes -= size
        self._wake()

    async def wait(self, deadline: float, *, again: bool) -> None:
        """Wait until there may be room.

        Args:
            deadline: Until when, in the time of the event loop.
            again: Whether the caller's turn had come, and there was no room. Then it is the first.
        """
        turn = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)(turn)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self._wake()  # the turn is for somebody else
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(turn)

    def pass_on(self) -> None:
        """A reader that has waited has read its page: the next one may look."""
        if self.held_bytes < self._max_bytes:
            self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class PageShare:
    """What one reader holds: one page at a time.

    Args:
        budget: What it counts for.
    """

    def __init__(self, budget: PageBudget) -> None:
        self._budget = budget
        self._held = 0

    async def take(self, timeout: float) -> int:  # noqa: ASYNC109 - 0 is an answer
        """Return how large the next page may be: tiny if there was no room for `timeout` seconds, or 0."""
        loop = asyncio.get_running_loop()
        deadline, again = loop.time() + timeout, False
        while not (size := self._budget.take()) and loop.time() < deadline:
            await self._budget.wait(deadline, again=again)
            again = True
        size = size or self._budget.take_tiny()
        self._held += size
        self._budget.pass_on()
        return size

    def resize(self, size: int) -> None:
        """The page has been read, and has so many bytes."""
        surplus, self._held = self._held - size, size
        self._budget.give_back(surplus)

    def close(self) -> None:
        """The page is not in memory any more. Idempotent."""
        if self._held:
            self.resize(0)
