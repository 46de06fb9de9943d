"""Tasks that run beside their caller: held until they end, ended, or protected from cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class BackgroundTasks:
    """Holds running tasks, so that none is lost and all can be cancelled. A failed task is logged.

    Args:
        owner: Names the owner in the log.
        on_done: Called when a task has ended.
    """

    def __init__(self, owner: str, *, on_done: Callable[[], None] | None = None) -> None:
        self._owner = owner
        self._on_done = on_done
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(set(self._tasks))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Cancel all tasks; does not wait for them."""
        for task in self:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("%s: a task failed", self._owner, exc_info=exc, extra={"action": "fault"})
        if self._on_done is not None:
            self._on_done()


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if this call is cancelled, and return its result.

    `work` must be bounded in time.

    Raises:
        CancelledError: This call was cancelled in the meantime.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` and wait until they have ended, without a time limit.

    Cancelling this call cancels them again, which makes a draining service stop sooner. It still waits.

    Raises:
        asyncio.CancelledError: The call was cancelled. All tasks have ended.
    """
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    was_cancelled = False
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError:
            was_cancelled = True
            pending = {task for task in pending if not task.done()}
            for task in pending:
                task.cancel()
    if was_cancelled:
        raise asyncio.CancelledError
