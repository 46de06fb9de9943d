"""Waking those who wait: for more of a task's event stream, and for its end.

The hub holds no data. A reader looks into the store, and waits here when there is nothing new; a writer
wakes it after its transaction. So every reader sees the stored sequence, from any cursor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from llama_deploy.backoff import Backoff
from llama_deploy.errors import TaskNotFoundError, UnavailableError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import TaskView

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_ALIVE_SECONDS: Final = 15.0
"""How often a stream on which nothing happens says that it is alive."""
_PAGE: Final = 500
_BACKOFF: Final = Backoff(first=0.1, longest=2.0)


class Watch:
    """One waiter for one task."""

    def __init__(self) -> None:
        self.ended: TaskView | None = None
        self.deleted = False
        self.closing = False
        self.doubtful = False
        """Whether something may have happened that could not be read."""
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Tell the waiter that something has changed."""
        self._changed.set()

    async def changed(self, timeout: float) -> bool:  # noqa: ASYNC109 - a wait that ends in time is an answer
        """Wait until something changes; False after `timeout` seconds without."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def end(self, timeout: float) -> TaskView | None:  # noqa: ASYNC109 - as above
        """Wait until the task has ended; None if it has not after `timeout` seconds, or nobody can tell."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.ended is None and not (self.deleted or self.closing or self.doubtful):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self.changed(left):
                break
        return self.ended


class StreamHub:
    """All waiters of this process, by task."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}

    @contextmanager
    def watch(self, task_id: str) -> Iterator[Watch]:
        """Wait for a task from now on. Look into the store after this, so that nothing falls between."""
        watch = Watch()
        watches = self._watches.setdefault(task_id, set())
        watches.add(watch)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(task_id) is watches:
                del self._watches[task_id]

    def is_watched(self, task_id: str) -> bool:
        """Whether anybody waits for the task."""
        return task_id in self._watches

    def watched(self) -> list[str]:
        """Return the ids of all tasks that anybody waits for."""
        return list(self._watches)

    def grown(self, task_id: str) -> None:
        """The task's stream has grown."""
        for watch in self._watches.get(task_id, ()):
            watch.wake()

    def ended(self, view: TaskView) -> None:
        """The task has ended."""
        for watch in self._watches.get(view.task_id, ()):
            watch.ended = view
            watch.wake()

    def deleted(self, task_id: str) -> None:
        """The task was deleted."""
        for watch in self._watches.get(task_id, ()):
            watch.deleted = True
            watch.wake()

    def doubt(self, task_id: str) -> None:
        """Something may have happened to the task: whoever waits for it has to look himself."""
        for watch in self._watches.get(task_id, ()):
            watch.doubtful = True
            watch.wake()

    def close(self) -> None:
        """Wake everybody: the control plane stops."""
        for watches in self._watches.values():
            for watch in watches:
                watch.closing = True
                watch.wake()


async def follow(
    store: StateStore, hub: StreamHub, task_id: str, *, after: int = -1
) -> AsyncIterator[list[EventRecord]]:
    """Yield the events of a task in order, as they come, until the terminal one.

    Args:
        store: Where they are kept.
        hub: Where news of them come from.
        task_id: The task.
        after: Only events whose index is greater.

    Yields:
        Events that follow one another; an empty list about every 15 seconds while nothing happens.

    Raises:
        TaskNotFoundError: There is no such task, or it was deleted meanwhile.
    """
    cursor = after
    is_over = False
    with hub.watch(task_id) as watch:
        if task_id not in await _patiently(watch, lambda: store.read(lambda tx: tx.tasks.load([task_id]))):
            raise TaskNotFoundError(f"there is no task {task_id}", task_id=task_id)
        while not watch.closing:
            start = cursor
            events = await _patiently(
                watch,
                lambda: store.read(lambda tx: tx.events.load(task_id, after=start, limit=_PAGE)),  # noqa: B023
            )
            if events:
                cursor = events[-1].index
                yield events
                if events[-1].terminal:
                    return
                if len(events) == _PAGE:
                    continue
            elif watch.deleted:
                raise TaskNotFoundError(f"task {task_id} was deleted", task_id=task_id)
            elif is_over:
                return  # the cursor is beyond the end
            elif watch.ended is not None or await _patiently(watch, lambda: _has_ended(store, task_id)):
                is_over = True
                continue  # its last events may have come since we looked
            if not await watch.changed(KEEP_ALIVE_SECONDS):
                yield []


async def _patiently(watch: Watch, read: Callable[[], Awaitable[T]]) -> T:
    """Read again while the store does not answer: the reader of a stream is told nothing of that.

    Raises:
        UnavailableError: The control plane stops.
    """
    failures = 0
    while True:
        try:
            return await read()
        except UnavailableError as exc:
            if watch.closing:
                raise
            failures += 1
            if failures == 1:
                logger.warning("a stream waits for the store: %s", exc, extra={"action": "stream_waits"})
        await watch.changed(_BACKOFF.delay(failures))


async def _has_ended(store: StateStore, task_id: str) -> bool:
    task = (await store.read(lambda tx: tx.tasks.load([task_id]))).get(task_id)
    if task is None:
        raise TaskNotFoundError(f"task {task_id} was deleted", task_id=task_id)
    return task.status.is_terminal
