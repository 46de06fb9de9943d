"""Cleaning up that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def to_the_end(work: Coroutine[None, None, None]) -> None:
    """Run `work` to its end although this call is cancelled meanwhile; `work` must be bounded in time.

    Raises:
        CancelledError: This call was cancelled meanwhile.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
