"""What other control planes change, for the readers of feeds at this one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Collection
from datetime import datetime
from functools import partial
from typing import Final

from llama_deploy.control_plane.requests.tasks.feed_requests import changed_since
from llama_deploy.control_plane.storage.feed_interest import RENEW_SECONDS
from llama_deploy.control_plane.streams.feed_cursor import MARGIN
from llama_deploy.control_plane.streams.task_feed import TaskFeed
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import Notice, StateStore, StoreTransaction
from llama_deploy.state_stores.feed_repository import TaskChangeRecord

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS: Final = 1.0
"""After how long the others have heard that a feed is read."""


class FeedWatch:
    """Asks the others to name the tasks that change while feeds are read here, and looks for what was missed.

    Args:
        store: Holds the tasks.
        feed: The readers.
        clock: Returns the current time, aware, UTC.
    """

    def __init__(self, *, store: StateStore, feed: TaskFeed, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await self._feed.begun.wait()
            await self._watch()

    async def _watch(self) -> None:
        since, pause = self._clock() - MARGIN, _FIRST_LOOK_SECONDS
        while self._feed.is_read:
            try:
                await self._store.transact(_show_interest, synced=False)
                await asyncio.sleep(pause)
                now, number = self._clock(), self._feed.number
                await self._tell(changed_since(self._store, since), number)
                since, pause = now - MARGIN, RENEW_SECONDS
            except UnavailableError as exc:
                logger.debug("what has changed cannot be read: %s", exc, extra={"action": "feed_waits"})
                await asyncio.sleep(_FIRST_LOOK_SECONDS)

    async def _tell(self, pages: AsyncIterable[list[TaskChangeRecord]], number: int) -> None:
        async for page in pages:
            if again := self._feed.read(page, number=number):
                await self.look_at(again)
            number = self._feed.number

    async def look_at(self, task_ids: Collection[str]) -> list[str]:
        """Tell what has become of tasks that have changed, and return those that do not exist.

        Raises:
            UnavailableError: The store does not answer.
        """
        missing: list[str] = []
        left = list(task_ids)
        while left:
            number = self._feed.number
            found = await self._store.read(partial(_load, task_ids=left))
            missing += [task_id for task_id in left if task_id not in found]
            left = self._feed.read(found.values(), number=number)
        return missing


def _load(tx: StoreTransaction, *, task_ids: Collection[str]) -> dict[str, TaskChangeRecord]:
    return tx.feeds.load(task_ids)


def _show_interest(tx: StoreTransaction) -> None:
    tx.notify(Notice(feeds=True))
