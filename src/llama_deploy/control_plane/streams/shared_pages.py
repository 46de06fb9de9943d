"""Readers at the same place of a stream share one read of the store, and its events in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from llama_deploy.state_stores.records import EventRecord

_MAX_KEPT_BYTES: Final = 64 * 1024
"""A page with more data is not kept for readers that come to its place later."""

Page: TypeAlias = list[EventRecord]


@dataclass(slots=True, eq=False)
class _Place:
    """A place in a stream, and the page that follows it."""

    waiters: list[asyncio.Future[Page]] = field(default_factory=list)
    """The readers that wait for the page."""
    page: Page | None = None
    reading: asyncio.Task[None] | None = None
    """A reference, so that it is not collected."""


@dataclass(slots=True, eq=False)
class SharedPages:
    """The pages of the stream of one task that its readers in this process ask for.

    A page is shared as long as the stream has not grown since it was asked for: what is read after that is in
    no earlier page.
    """

    _places: dict[int, _Place] = field(default_factory=dict)

    def grown(self) -> None:
        """The stream has grown, or may have."""
        self._places.clear()

    async def load(self, cursor: int, read: Callable[[], Awaitable[Page]]) -> Page:
        """Return the page after a position.

        Args:
            cursor: The position.
            read: Reads the page; called if no other reader has asked for it.

        Raises:
            LlamaDeployError: As `read`. The next call reads again.
        """
        place = self._places.get(cursor)
        if place is not None and place.page is not None:
            return place.page
        if place is None:
            place = self._places[cursor] = _Place()
            # A task of its own, because the reader that has begun it may go away.
            place.reading = asyncio.create_task(self._read(cursor, place, read))
        waiter: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        place.waiters.append(waiter)
        return await waiter

    async def _read(self, cursor: int, place: _Place, read: Callable[[], Awaitable[Page]]) -> None:
        page: Page = []
        error: Exception | None = None
        try:
            page = await read()
        except Exception as exc:  # noqa: BLE001 - handed to the readers
            error = exc
        if self._places.get(cursor) is place:
            self._keep(cursor, place, page)
        for waiter in place.waiters:
            if waiter.done():
                continue  # the reader has gone away
            if error is None:
                waiter.set_result(page)
            else:
                waiter.set_exception(error)
        place.waiters.clear()

    def _keep(self, cursor: int, place: _Place, page: Page) -> None:
        """Keep a page that may serve others: one with few data. Readers that follow a stream are at its end.

        An empty page is not kept: a reader that was not told of new events finds them when it looks again.
        """
        if 0 < sum(event.data_bytes for event in page) <= _MAX_KEPT_BYTES:
            self._places = {
                at: each for at, each in self._places.items() if each is place or each.page is None
            }
            place.page = page
        else:
            del self._places[cursor]
