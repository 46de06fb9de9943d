"""Run several parts until one of them ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def run_together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run `parts` until one of them ends, then cancel the others and wait for them.

    Raises:
        Exception: The error of the part that ended first.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        failed = [task for task in tasks if task.done()]
    finally:
        await end(tasks)
    for task in failed:
        task.result()


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
