"""Changes by other control planes on the same store, for the waiters of this one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from llama_deploy.control_plane.dispatch.sweep_loop import SweepLoop
from llama_deploy.control_plane.requests.callers.key_callers import KeyCallers
from llama_deploy.control_plane.requests.tasks.feed_watch import FeedWatch
from llama_deploy.control_plane.requests.tasks.task_requests import task_view
from llama_deploy.control_plane.storage.feed_interest import FeedInterest
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.control_plane.streams.stream_hub import StreamHub
from llama_deploy.control_plane.streams.task_feed import TaskFeed
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import Notice, StateStore

logger = logging.getLogger(__name__)

_PAGE: Final = 500


class News:
    """Wakes waiters and the sweeps when another control plane has changed something.

    Args:
        store: Tells of changes, and has them.
        hub: Who waits for tasks.
        sweeps: Do what is due.
        removals: Learns that tasks may have been removed.
        feed: Who reads of changes.
        watch: Reads what has changed for them.
        interest: Is told that another control plane has such readers.
        callers: Is told that an API key may have been revoked.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        hub: StreamHub,
        sweeps: SweepLoop,
        removals: KnownRemovals,
        feed: TaskFeed,
        watch: FeedWatch,
        interest: FeedInterest,
        callers: KeyCallers,
    ) -> None:
        self._store = store
        self._hub = hub
        self._sweeps = sweeps
        self._removals = removals
        self._feed = feed
        self._watch = watch
        self._interest = interest
        self._callers = callers

    async def run(self) -> None:
        """Pass news on until cancelled, or until the store is closed."""
        async with aclosing(self._store.notices()) as notices:
            async for notice in notices:
                await self._pass_on(notice)

    async def _pass_on(self, notice: Notice) -> None:
        if notice.lost or notice.everything:
            self._removals.note()
        if notice.lost:
            self._sweeps.note_missed_heartbeats()
        if notice.everything:
            self._sweeps.wake()
        elif notice.due is not None:
            self._sweeps.wake(notice.due)
        if notice.keys or notice.lost or notice.everything:
            self._callers.forget()
        if notice.feeds:
            self._interest.note()
        if self._feed.is_read:
            await self._tell_feed(notice)
        watched = self._watched(notice)
        for start in range(0, len(watched), _PAGE):
            page = watched[start : start + _PAGE]
            # A waiter may be here before its task is submitted; notices do not name such a task.
            await self._tell(page, missing_is_deleted=not notice.everything)

    async def _tell_feed(self, notice: Notice) -> None:
        if notice.everything:
            self._feed.look()
        ids = sorted(notice.task_ids)
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            try:
                deleted = await self._watch.look_at(page)
            except UnavailableError:
                return  # the watch reads it later
            self._feed.deleted(deleted)
            self._feed.grown(page)

    def _watched(self, notice: Notice) -> Sequence[str]:
        if notice.everything:
            return self._hub.watched()
        return [task_id for task_id in notice.task_ids if self._hub.is_watched(task_id)]

    async def _tell(self, task_ids: Sequence[str], *, missing_is_deleted: bool) -> None:
        try:
            tasks = await self._store.read(lambda tx: tx.tasks.load(task_ids))
        except UnavailableError as exc:
            logger.warning("what has changed cannot be read: %s", exc, extra={"action": "news"})
            for task_id in task_ids:
                self._hub.invalidate(task_id)
            return
        for task_id in task_ids:
            task = tasks.get(task_id)
            if task is not None and task.status.is_terminal:
                self._hub.ended(task_id, task_view(task))
            elif task is None and missing_is_deleted:
                self._hub.deleted(task_id)
            else:
                self._hub.grown(task_id)
