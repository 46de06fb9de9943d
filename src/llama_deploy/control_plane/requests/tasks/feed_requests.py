"""Requests of clients for feeds of task changes."""

from __future__ import annotations

import math
import time
from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from llama_deploy.control_plane.streams.event_filter import EventFilter
from llama_deploy.control_plane.streams.feed_cursor import (
    MARGIN,
    FeedFilter,
    decode_feed_cursor,
    encode_feed_cursor,
)
from llama_deploy.control_plane.streams.stream_hub import KEEP_ALIVE_SECONDS
from llama_deploy.control_plane.streams.task_feed import (
    MAX_STREAMED,
    Change,
    FeedReader,
    TaskFeed,
    change_of,
)
from llama_deploy.errors import InvalidRequestError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import TaskStatus

_PAGE: Final = 500
_EVENTS: Final = 100
"""How many events of a task are sent before it is the turn of the next task."""
_EVENT_BYTES: Final = 256 * 1024
_PAUSE_SECONDS: Final = 0.1
"""A reader is told at most so often. What changes meanwhile is told together."""
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PUBLIC: Final = EventFilter()


class DeletedTask(NamedTuple):
    """A task was deleted."""

    task_id: str


class FeedPosition(NamedTuple):
    """Everything up to here was told."""

    cursor: str


FeedPart: TypeAlias = Change | DeletedTask | EventRecord | FeedPosition
FeedStream: TypeAlias = AsyncGenerator[list[FeedPart]]
"""Batches of what a reader is told. After at most 15 seconds there is one with a position."""


@dataclass(frozen=True, slots=True)
class Feeds:
    """Tells readers which tasks have changed."""

    store: StateStore
    feed: TaskFeed
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""
    monotonic: Callable[[], float] = field(default=time.monotonic)

    async def open(
        self,
        wanted: FeedFilter,
        *,
        after: str | None = None,
        stream: bool = False,
        wait: float = math.inf,
    ) -> FeedStream:
        """Tell the changes of tasks from now on, or from a cursor on.

        The latest status of each task is told, at least once. What a task was in between may be left out.

        Args:
            wanted: The tasks and the changes.
            after: A cursor that the feed has sent, at any control plane. None: from now on.
            stream: Whether to send the events of the tasks too: of all that are open, and of new ones.
                `wanted.statuses` does not concern them. After a cursor, they come from the first one on.
            wait: Seconds after which the feed ends; 0 tells what has changed since the cursor.

        Raises:
            InvalidRequestError: The cursor is malformed, or belongs to another filter; or there are too many
                open tasks to send their events.
            CursorExpiredError: The cursor is too old.
        """
        since = None if after is None else decode_feed_cursor(after, wanted, now=self.clock())
        if stream:
            count = 0
            async for page in self._changed(_BEGINNING, wanted, _open_statuses()):
                count += len(page)
                if count > MAX_STREAMED:
                    raise InvalidRequestError(
                        f"the events of more than {MAX_STREAMED} open tasks cannot be sent in one feed; name"
                        " a service or a session"
                    )
        reader = FeedReader(wanted, streams=stream, is_loading=stream)
        return self._follow(reader, since, until=self.monotonic() + wait)

    async def _follow(self, reader: FeedReader, since: datetime | None, *, until: float) -> FeedStream:
        with self.feed.reader(reader):
            told_at = self.clock()
            if reader.streams:
                async for page in self._changed(_BEGINNING, reader.wanted, _open_statuses()):
                    for record in page:
                        reader.follow(record.task_id, after=-1 if since else record.stream_length - 1)
                reader.followed()
                if since is not None:
                    reader.look()
            if since is not None:
                async for told in self._told_since(since, reader):
                    yield told
            yield [_position(told_at, reader)]
            async for told in self._go_on(reader, told_at, until=until):
                yield told

    async def _go_on(self, reader: FeedReader, told_at: datetime, *, until: float) -> FeedStream:
        while not reader.closing and (sent_at := self.monotonic()) < until:
            if reader.missed:
                reader.missed = False
                async for told in self._told_since(told_at - MARGIN, reader):
                    yield told
            now = self.clock()
            changes, deleted = reader.take()
            async for events in self._events(reader):
                yield events
            if changes or deleted:
                told_at = now
                yield [*changes, *map(DeletedTask, deleted), _position(told_at, reader)]
                del changes, deleted
            if not await reader.changed(min(KEEP_ALIVE_SECONDS, until - self.monotonic())):
                told_at = now
                yield [_position(told_at, reader)]
            elif (left := sent_at + _PAUSE_SECONDS - self.monotonic()) > 0:
                await sleep(left)

    async def _told_since(self, since: datetime, reader: FeedReader) -> FeedStream:
        admits = reader.wanted.admits_status
        statuses = [status for status in TaskStatus if admits(status)]
        if admits(TaskStatus.WAITING) and not admits(TaskStatus.RUNNING):
            statuses.append(TaskStatus.RUNNING)  # runs that wait in memory
        async for page in self._changed(since, reader.wanted, statuses):
            if reader.streams:
                for record in page:
                    reader.follow(record.task_id, after=-1)
                reader.look()
            yield [change_of(record) for record in page if admits(record.shown_status)]

    async def _changed(
        self, since: datetime, wanted: FeedFilter, statuses: Iterable[TaskStatus]
    ) -> AsyncIterator[list[TaskChangeRecord]]:
        """Yield pages of the tasks that have one of the statuses since a time."""
        async for page in changed_since(self.store, since, statuses):
            found = [task for task in page if wanted.admits_task(task)]
            if found:
                yield found

    async def _events(self, reader: FeedReader) -> FeedStream:
        """Yield the new events of the tasks whose streams have grown, a page of each in turn."""
        for task_id in list(reader.grown):
            reader.grown.pop(task_id, None)
            after = reader.streamed.get(task_id)
            if after is None:
                continue
            page = await self.store.read(partial(_load_events, task_id=task_id, after=after))
            if not page:
                continue
            last = page[-1]
            if last.terminal:
                reader.streamed.pop(task_id, None)
            else:
                reader.streamed[task_id] = last.position
                reader.grow(task_id)  # until nothing is left
            yield [event for event in page if _PUBLIC.admits(event)]
            del page


async def changed_since(
    store: StateStore, since: datetime, statuses: Iterable[TaskStatus] = tuple(TaskStatus)
) -> AsyncIterator[list[TaskChangeRecord]]:
    """Yield pages of the tasks that have one of the statuses since a time."""
    for status in statuses:
        place = since, ""
        while True:
            page = await store.read(partial(_load_changes, status=status, place=place))
            if page:
                yield page
            if len(page) < _PAGE:
                break
            place = page[-1].status_changed_at, page[-1].task_id


def _position(told_at: datetime, reader: FeedReader) -> FeedPosition:
    return FeedPosition(encode_feed_cursor(told_at, reader.wanted))


def _open_statuses() -> list[TaskStatus]:
    return [status for status in TaskStatus if not status.is_terminal]


def _load_changes(
    tx: StoreTransaction, *, status: TaskStatus, place: tuple[datetime, str]
) -> list[TaskChangeRecord]:
    since, after = place
    return tx.feeds.changed_since(status, since, after=after, limit=_PAGE)


def _load_events(tx: StoreTransaction, *, task_id: str, after: int) -> list[EventRecord]:
    return tx.events.load(task_id, after=after, limit=_EVENTS, max_bytes=_EVENT_BYTES)
