"""Waiting for a condition with a deadline, in place of sleeping and hoping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

_LOOK_EVERY_SECONDS: Final = 0.01


async def eventually(check: Callable[[], Awaitable[T]], *, seconds: float = 10.0) -> T:
    """Call `check` again and again until it returns something true, and return that.

    Args:
        check: Looks whether the condition holds. What it raises is raised here.
        seconds: The deadline.

    Raises:
        TimeoutError: The condition did not come to hold in time.
    """
    async with asyncio.timeout(seconds):
        while not (found := await check()):  # noqa: ASYNC110 - the condition may lie outside of this process
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
    return found
