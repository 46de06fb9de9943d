"""Waiting for a condition with a deadline, in place of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

_LOOK_EVERY_SECONDS: Final = 0.01


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, seconds: float = 10.0) -> T: ...


@overload
async def eventually(check: Callable[[], T], *, seconds: float = 10.0) -> T: ...


async def eventually(check: Callable[[], Any], *, seconds: float = 10.0) -> Any:
    """Call `check` again and again until it returns something true, and return that.

    Args:
        check: Looks whether the condition holds; a plain function or one of asyncio. What it raises is raised
            here.
        seconds: The deadline.

    Raises:
        TimeoutError: The condition did not come to hold in time.
    """
    async with asyncio.timeout(seconds):
        while True:
            looked = check()
            found = await looked if inspect.isawaitable(looked) else looked
            if found:
                return found
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
