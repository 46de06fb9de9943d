"""Turns calls that wait at the same time into one.

A batcher does not wait for a batch to fill, unless it is told to: an idle one flushes its first item at
once, and what arrives during that flush leaves together in the next one. So batches grow with the load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from llama_deploy.errors import ClosedError, OverloadedError

T = TypeVar("T")
R = TypeVar("R")


def split(
    items: Iterable[T], *, size: Callable[[T], int], max_size: int, max_items: int | None = None
) -> Iterator[list[T]]:
    """Cut items, in their order, into parts for one request each; an item that is too large is a part alone.

    Args:
        items: The items.
        size: Returns the size of an item.
        max_size: The largest sum of the sizes in a part.
        max_items: How many items a part holds at most. None: any number.
    """
    part: list[T] = []
    total = 0
    for item in items:
        length = size(item)
        if part and (total + length > max_size or len(part) == max_items):
            yield part
            part, total = [], 0
        part.append(item)
        total += length
    if part:
        yield part


class Batcher(Generic[T, R]):
    """Turns many concurrent `submit(item)` calls into few `flush(items)` calls, one at a time.

    Args:
        flush: Takes the items in the order of submission and returns one outcome an item, in the same
            order: a value, or an exception which the submitter of that item receives. If `flush` itself
            raises, every item of the batch receives that error.
        max_batch: How many items a flush has at most.
        max_waiting: How many items may wait; a further one raises `OverloadedError`.
        gather_seconds: How long an idle batcher waits for more items before it flushes; for items whose
            outcome no caller waits for.
        name: Names the batcher in errors and in its task.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        max_batch: int = 256,
        max_waiting: int = 20_000,
        gather_seconds: float = 0.0,
        name: str = "batcher",
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._gather_seconds = gather_seconds
        self._name = name
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def submit(self, item: T) -> R:
        """Hand `item` to the next flush and return its outcome.

        A caller that is cancelled while it waits does not take its item back: it may still be flushed.

        Raises:
            OverloadedError: `max_waiting` items wait already.
            ClosedError: The batcher is closed.
        """
        return await self.submit_nowait(item)

    def submit_nowait(self, item: T) -> asyncio.Future[R]:
        """Like `submit`, but returns the future of the outcome at once; the order of calls is kept."""
        if self._closed:
            raise ClosedError(f"the batcher {self._name!r} is closed; open another of what owns it")
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(f"{self._name} has {self._max_waiting} calls waiting; retry later")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain(), name=self._name)
        return future

    async def close(self) -> None:
        """Flush what waits, then accept no further items. Idempotent."""
        self._closed = True
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def _drain(self) -> None:
        if self._gather_seconds:
            await asyncio.sleep(self._gather_seconds)
        while self._waiting:
            size = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(size)]
            try:
                outcomes = await self._flush([item for item, _ in batch])
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise
            except Exception as exc:  # noqa: BLE001 - handed to every submitter
                outcomes = [exc] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, BaseException):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
