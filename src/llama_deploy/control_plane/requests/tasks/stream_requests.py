"""Requests of clients for the event stream of a task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.control_plane.streams.event_filter import EventFilter, FilteredItem, filtered
from llama_deploy.control_plane.streams.expired_events import check_cursor
from llama_deploy.control_plane.streams.stream_hub import StreamHub, follow_attempts
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import TaskRecord

FilteredStream: TypeAlias = AsyncIterator[list[FilteredItem]]
"""Batches of what a reader wants of a stream, in order. An empty batch is a keep-alive."""

_ALL: Final = EventFilter()


@dataclass(frozen=True, slots=True)
class Streams:
    """Reads the event streams of tasks."""

    store: StateStore
    hub: StreamHub
    """Notifies of new events."""

    async def open(
        self, task_id: str, *, after: int = -1, wanted: EventFilter = _ALL, attempts: bool = True
    ) -> FilteredStream:
        """Stream a task's events, from the one after `after` to the terminal one.

        Args:
            task_id: The task.
            after: Only events whose index is greater.
            wanted: Which of them.
            attempts: Whether a `NewAttempt` is sent wherever a new attempt takes over.

        Raises:
            TaskNotFoundError: The task does not exist.
            EventsExpiredError: Events after `after` were removed.
        """
        await check_cursor(self.store, await self._find(task_id), after)
        groups = follow_attempts(self.store, self.hub, task_id, after=after, markers=attempts)
        return filtered(groups, wanted)

    async def has_more(self, task_id: str, *, after: int) -> bool:
        """Whether there are, or may still be, events after a position.

        Raises:
            TaskNotFoundError: The task does not exist.
        """
        task = await self._find(task_id)
        return not task.status.is_terminal or after < task.stream_length - 1

    async def _find(self, task_id: str) -> TaskRecord:
        return await self.store.read(lambda tx: find_task(tx, task_id, lean=True))
