"""Parts that run together: when one fails all end, and the failure is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def run_together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run `parts` until one of them ends; the others are cancelled then, and waited for.

    Raises:
        Exception: What the part that ended first has raised, as it is.
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
    """Cancel `tasks` and wait until they have ended, however long they take.

    Cancelling this call cancels them again, which hurries a service that drains; it does not leave them.

    Raises:
        asyncio.CancelledError: The call was cancelled; the tasks have ended nevertheless.
    """
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    hurried = False
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError:
            hurried = True
            pending = {task for task in pending if not task.done()}
            for task in pending:
                task.cancel()
    if hurried:
        raise asyncio.CancelledError
