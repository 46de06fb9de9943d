"""Notify readers of a task's event stream, and callers that wait for its end.

The hub holds no data. A reader reads the store and waits here when there is nothing new; a writer notifies it
after its transaction. So every reader sees the stored sequence, from any cursor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Final, TypeVar

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.control_plane.streams.attempt_markers import AttemptMarkers, StreamItem
from llama_deploy.control_plane.streams.expired_events import check_no_gap
from llama_deploy.control_plane.streams.page_budget import SMALL_PAGE_BYTES, PageBudget
from llama_deploy.control_plane.streams.shared_pages import SharedPages
from llama_deploy.errors import TaskNotFoundError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.types import NewAttempt, TaskView

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_ALIVE_SECONDS: Final = 15.0
"""How often an idle stream sends a keep-alive."""
_PAGE: Final = 500
_ROOM_SECONDS: Final = 1.0
"""How long a reader waits for room in memory."""
_BACKOFF: Final = Backoff(first=0.1, longest=2.0)


class Watch:
    """One waiter for one task."""

    def __init__(self) -> None:
        self.ended: TaskView | None = None
        self.deleted = False
        self.closing = False
        self.is_stale = False
        """Whether the task may have changed in a way that could not be read."""
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Notify the waiter that something has changed."""
        self._changed.set()

    async def changed(self, timeout: float) -> bool:  # noqa: ASYNC109 - a wait that ends in time is an answer
        """Wait for a change. Return False if there is none within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def end(self, timeout: float) -> TaskView | None:  # noqa: ASYNC109 - as above
        """Wait until the task has ended. Return None after `timeout` seconds, or if that cannot be read."""
        deadline = asyncio.get_running_loop().time() + timeout
        while self.ended is None and not (self.deleted or self.closing or self.is_stale):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self.changed(left):
                break
        return self.ended


class StreamHub:
    """All waiters of this process, by task."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}
        self._pages: dict[str, SharedPages] = {}
        """What the readers of streams share, by task."""
        self.budget = PageBudget()
        """For the pages of events that are in memory."""

    @contextmanager
    def watch(self, task_id: str) -> Iterator[Watch]:
        """Register a waiter for a task. Read the store after this, so that no change is missed."""
        watch = Watch()
        watches = self._watches.setdefault(task_id, set())
        watches.add(watch)
        try:
            yield watch
        finally:
            watches.discard(watch)
            if not watches and self._watches.get(task_id) is watches:
                del self._watches[task_id]
                self._pages.pop(task_id, None)

    def pages(self, task_id: str) -> SharedPages:
        """Return the pages that the readers of a task's stream share, within `watch`."""
        return self._pages.setdefault(task_id, SharedPages())

    def is_watched(self, task_id: str) -> bool:
        """Whether there is a waiter for the task."""
        return task_id in self._watches

    def watched(self) -> list[str]:
        """Return the ids of all tasks with waiters."""
        return list(self._watches)

    def grown(self, task_id: str) -> None:
        """The task's stream has grown."""
        if task_id in self._watches:
            for watch in self._changed(task_id):
                watch.wake()

    def ended(self, task_id: str, view: TaskView) -> None:
        """The task has ended; `view` shows it to clients."""
        for watch in self._changed(task_id):
            watch.ended = view
            watch.wake()

    def deleted(self, task_id: str) -> None:
        """The task was deleted."""
        for watch in self._changed(task_id):
            watch.deleted = True
            watch.wake()

    def invalidate(self, task_id: str) -> None:
        """The task may have changed: its waiters must read the store."""
        for watch in self._changed(task_id):
            watch.is_stale = True
            watch.wake()

    def close(self) -> None:
        """Notify all waiters that the control plane stops."""
        for watches in self._watches.values():
            for watch in watches:
                watch.closing = True
                watch.wake()

    def _changed(self, task_id: str) -> Iterable[Watch]:
        """Return the waiters for a task, whose stream is to be read again."""
        if (pages := self._pages.get(task_id)) is not None:
            pages.grown()
        return self._watches.get(task_id, ())


async def follow(
    store: StateStore, hub: StreamHub, task_id: str, *, after: int = -1
) -> AsyncIterator[list[EventRecord]]:
    """Yield the events of a task in order, as they occur, until the terminal one.

    Args:
        store: Holds the events.
        hub: Notifies of new events.
        task_id: The task.
        after: Only events whose index is greater.

    Yields:
        Consecutive events; an empty list about every 15 seconds while there are none.

    Raises:
        TaskNotFoundError: The task does not exist, or it was deleted during the stream.
        EventsExpiredError: Events after `after`, or after what was read, were removed.
    """
    async for group, _ in _follow(
        store, hub, task_id, after=after, markers=AttemptMarkers(after, wanted=False)
    ):
        yield group
        del group  # before the next page is read


async def follow_attempts(
    store: StateStore, hub: StreamHub, task_id: str, *, after: int = -1, markers: bool = True
) -> AsyncIterator[list[StreamItem]]:
    """Yield the events of a task as `follow` does, and between them where new attempts take over.

    A reader is told of a takeover at once, before the new attempt has streamed anything; without `markers`,
    it is not told.
    """
    told = AttemptMarkers(after, wanted=markers)
    async for group, due in _follow(store, hub, task_id, after=after, markers=told):
        items = [*due, *told.placed(group)]
        del group
        yield items
        del items  # before the next page is read


async def _follow(
    store: StateStore, hub: StreamHub, task_id: str, *, after: int, markers: AttemptMarkers
) -> AsyncIterator[tuple[list[EventRecord], list[NewAttempt]]]:
    """Yield events, and the markers that stand before the first of them."""
    cursor = after
    is_over = is_last = False
    load_task = partial(_load_task, task_id=task_id)
    with hub.watch(task_id) as watch, closing(hub.budget.share()) as page:
        while not (watch.closing or is_last):
            size = await page.take(_ROOM_SECONDS)
            if not size:
                yield [], []
                continue
            events = await _load_page(_page_loader(store, hub, task_id, cursor, max_bytes=size), watch)
            held = sum(event.data_bytes for event in events)
            page.resize(held)
            if events:
                check_no_gap(events, cursor)
                if markers.must_learn(events):
                    markers.learn(await _read_when_available(store, watch, load_task))
                cursor = events[-1].position
                # Another reader may have asked for a smaller page, which is shared.
                is_full = len(events) == _PAGE or held >= min(size, SMALL_PAGE_BYTES)
                is_last = events[-1].terminal
                yield events, []
                del events  # before the next page is read
                page.close()
                if is_last or is_full:
                    continue
            elif is_over:
                return  # the cursor is beyond the end
            elif (task := await _read_open(store, watch, task_id)) is None:
                is_over = True
                continue  # its last events may have been stored since they were read
            elif due := markers.after_learning(task, cursor):
                yield [], due
            if not await watch.changed(KEEP_ALIVE_SECONDS):
                yield [], []


def _page_loader(
    store: StateStore, hub: StreamHub, task_id: str, cursor: int, *, max_bytes: int
) -> Callable[[], Awaitable[list[EventRecord]]]:
    load = partial(_load_events, task_id=task_id, after=cursor, max_bytes=max_bytes)
    if max_bytes < SMALL_PAGE_BYTES:
        return partial(store.read, load)  # other readers have room for more
    return partial(hub.pages(task_id).load, cursor, partial(store.read, load))


async def _load_page(load: Callable[[], Awaitable[list[EventRecord]]], watch: Watch) -> list[EventRecord]:
    try:
        return await load()  # without the means to retry, which most calls do not need
    except UnavailableError:
        return await _when_available(load, watch)


async def _read_open(store: StateStore, watch: Watch, task_id: str) -> TaskRecord | None:
    """Return a task, None if it has ended."""
    if watch.deleted:
        raise TaskNotFoundError(f"task {task_id} was deleted", task_id=task_id)
    if watch.ended is not None:
        return None
    task = await _read_when_available(store, watch, partial(_load_task, task_id=task_id))
    return None if task.status.is_terminal else task


async def _read_when_available(store: StateStore, watch: Watch, work: Callable[[StoreTransaction], T]) -> T:
    return await _when_available(partial(store.read, work), watch)


async def _when_available(read: Callable[[], Awaitable[T]], watch: Watch) -> T:
    """Read the store, and retry while it is unavailable: the reader of a stream does not notice.

    Raises:
        UnavailableError: The control plane stops.
    """

    async def pause(seconds: float) -> None:
        await watch.changed(seconds)

    return await retry(
        read,
        backoff=_BACKOFF,
        retry_on=lambda exc: isinstance(exc, UnavailableError) and not watch.closing,
        outage=Outage(
            on_start=lambda exc: logger.warning(
                "a stream waits for the store: %s", exc, extra={"action": "stream_waits"}
            ),
            on_end=lambda: logger.info("a stream continues", extra={"action": "stream_continues"}),
        ),
        pause=pause,
    )


def _load_events(tx: StoreTransaction, *, task_id: str, after: int, max_bytes: int) -> list[EventRecord]:
    return tx.events.load(task_id, after=after, limit=_PAGE, max_bytes=max_bytes)


def _load_task(tx: StoreTransaction, *, task_id: str) -> TaskRecord:
    return find_task(tx, task_id, lean=True)
