"""Tells the readers of feeds which tasks have changed.

Nothing is stored for it, and while nobody reads a feed, nothing is done. The feed holds for each reader the
latest state of each task that has changed since the reader was last told; so a slow reader gets fewer states,
and always the last one. A reader for whom too much has changed reads the store again from its cursor.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from llama_deploy.control_plane.streams.feed_cursor import FeedFilter
from llama_deploy.state_stores.feed_repository import TaskChangeRecord
from llama_deploy.types import TaskStatus
from llama_deploy.types.feeds import TaskChange
from llama_deploy.types.keys import public_id

MAX_WAITING: Final = 2_000
"""How many tasks may have changed before a reader has to read the store again."""
MAX_STREAMED: Final = 10_000
"""How many open tasks a reader may follow that wants their events."""
_MAX_RECENT: Final = 20_000
"""Of how many tasks it is known what was told last."""


class Change(NamedTuple):
    """What is told of a task: shared by all readers."""

    record: TaskChangeRecord
    text: str
    """The `TaskChange` as JSON."""


def change_of(record: TaskChangeRecord) -> Change:
    """Return what is told of a task."""
    shown = TaskChange(
        task_id=public_id(record.task_id),
        session_id=public_id(record.session_id),
        service_name=record.target,
        status=record.shown_status,
        changed_at=record.status_changed_at,
        attempt=record.attempt,
        instance_id=record.instance_id,
        created_at=record.created_at,
        finished_at=record.finished_at,
        tags=json.loads(record.tags),
    )
    return Change(record, shown.model_dump_json())


@dataclass(slots=True, eq=False)
class FeedReader:
    """One reader of the feed."""

    wanted: FeedFilter
    streams: bool = False
    """Whether it wants the events of the tasks too."""
    missed: bool = False
    """Whether it has to read the store again."""
    closing: bool = False
    streamed: dict[str, int] = field(default_factory=dict)
    """The tasks whose events it wants, each with the index of the last event that it knows."""
    is_loading: bool = False
    """Whether the tasks are being read that are open."""
    grown: dict[str, None] = field(default_factory=dict)
    """Those of them that may have further events."""
    _changes: dict[str, Change] = field(default_factory=dict)
    _deleted: dict[str, None] = field(default_factory=dict)
    _early: dict[str, None] = field(default_factory=dict)
    """What has changed while the open tasks were read."""
    _early_grown: dict[str, None] = field(default_factory=dict)
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, change: Change) -> None:
        """A task has changed."""
        record = change.record
        if not self.wanted.admits_task(record):
            return
        if self.streams:
            self._grow_or_follow(record.task_id)
        if self.wanted.admits_status(record.shown_status):
            self._changes.pop(record.task_id, None)
            self._changes[record.task_id] = change
        else:
            # It has left the status in which it would have been told.
            self._changes.pop(record.task_id, None)
        self._limit()
        self._woken.set()

    def follow(self, task_id: str, *, after: int) -> None:
        """Want the events of a task that follow a position. With too many such tasks, the feed ends."""
        self.streamed.setdefault(task_id, after)
        if len(self.streamed) > MAX_STREAMED:
            self.close()

    def followed(self) -> None:
        """All tasks are followed that were open: what has changed meanwhile is new."""
        self.is_loading = False
        for task_id in self._early:
            self.follow(task_id, after=-1)
        self.grown.update((task_id, None) for task_id in self._early_grown if task_id in self.streamed)
        self._early.clear()
        self._early_grown.clear()

    def _grow_or_follow(self, task_id: str) -> None:
        """A task has changed that the reader wants. One that was not open is new."""
        if self.is_loading:
            self._early[task_id] = self._early_grown[task_id] = None
            return
        self.follow(task_id, after=-1)
        self.grow(task_id)

    def delete(self, task_id: str) -> None:
        """A task was deleted."""
        self._changes.pop(task_id, None)
        self.streamed.pop(task_id, None)
        self.grown.pop(task_id, None)
        if not self.wanted.admits_deletion(task_id):
            return
        self._deleted[task_id] = None
        self._limit()
        self._woken.set()

    def grow(self, task_id: str) -> None:
        """The stream of a task has grown."""
        if self.is_loading:
            self._early_grown[task_id] = None
        elif task_id in self.streamed:
            self.grown[task_id] = None
            self._woken.set()

    def look(self) -> None:
        """Any of the streams may have grown."""
        self.grown.update(dict.fromkeys(self.streamed))
        self._woken.set()

    def close(self) -> None:
        """The control plane stops."""
        self.closing = True
        self._woken.set()

    def take(self) -> tuple[list[Change], list[str]]:
        """Return, once, what has changed and which tasks were deleted."""
        changes, deleted = list(self._changes.values()), list(self._deleted)
        self._changes.clear()
        self._deleted.clear()
        return changes, deleted

    async def changed(self, seconds: float) -> bool:
        """Wait until there is something to tell. Return False if there is nothing within the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    def _limit(self) -> None:
        if len(self._changes) + len(self._deleted) > MAX_WAITING:
            self.missed = True
            self._changes.clear()
            self._deleted.clear()


class _Told(NamedTuple):
    """What was told of a task last."""

    key: tuple[TaskStatus, datetime, int]
    number: int
    """How much was told before."""


class TaskFeed:
    """All readers of feeds in this process."""

    def __init__(self) -> None:
        self._readers: set[FeedReader] = set()
        self._told: dict[str, _Told] = {}
        self._number = 0
        self.is_read = False
        """Whether there is a reader."""
        self.begun = asyncio.Event()
        """Set while there is a reader."""

    @contextmanager
    def reader(self, reader: FeedReader) -> Iterator[FeedReader]:
        """Register a reader. Read the store after this, so that no change is missed."""
        self._readers.add(reader)
        self.is_read = True
        self.begun.set()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers:
                self.is_read = False
                self.begun.clear()
                self._told.clear()

    @property
    def number(self) -> int:
        """How much was told so far. Ask before you read what has changed; see `read`."""
        return self._number

    def committed(self, tasks: Iterable[TaskChangeRecord]) -> None:
        """Tasks have changed in this process; they come in the order of the transactions."""
        for task in tasks:
            self._tell(task)

    def read(self, tasks: Iterable[TaskChangeRecord], *, number: int) -> list[str]:
        """Tell what was read of tasks.

        Args:
            tasks: The tasks.
            number: `number` before they were read.

        Returns:
            Tasks of which something was told meanwhile, so that it is not known what is newer: read them
            again.
        """
        again = []
        for task in tasks:
            told = self._told.get(task.task_id)
            if told is None or told.number <= number or told.key == _key(task):
                self._tell(task)
            else:
                again.append(task.task_id)
        return again

    def _tell(self, task: TaskChangeRecord) -> None:
        told = self._told.pop(task.task_id, None)
        self._told[task.task_id] = _Told(_key(task), self._number)
        if told is not None and told.key == _key(task):
            return
        self._number += 1
        self._told[task.task_id] = _Told(_key(task), self._number)
        while len(self._told) > _MAX_RECENT:
            del self._told[next(iter(self._told))]
        change = change_of(task)
        for reader in self._readers:
            reader.put(change)

    def grown(self, task_ids: Collection[str]) -> None:
        """The streams of tasks have grown."""
        for reader in self._readers:
            if reader.streams:
                for task_id in task_ids:
                    reader.grow(task_id)

    def deleted(self, task_ids: Collection[str]) -> None:
        """Tasks were deleted."""
        for reader in self._readers:
            for task_id in task_ids:
                reader.delete(task_id)

    def look(self) -> None:
        """The stream of any task may have grown."""
        for reader in self._readers:
            reader.look()

    def close(self) -> None:
        """The control plane stops."""
        for reader in self._readers:
            reader.close()


def _key(task: TaskChangeRecord) -> tuple[TaskStatus, datetime, int]:
    return task.shown_status, task.status_changed_at, task.attempt
