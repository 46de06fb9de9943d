"""Cancellations of tasks: whether there is one, what ends quietly with it, and how none is lost."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def ends_quietly(
    call: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T | None]]:
    """Let a coroutine function end without an error when its task is cancelled, as such functions did in 0.6.

    That holds for a task that consists of the call alone, as after `task = asyncio.create_task(f())`: with
    `task.cancel()`, `await task` returns None. A cancellation that the caller of `await f()` has to notice,
    such as that of `asyncio.timeout`, is raised.
    """

    @wraps(call)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return await call(*args, **kwargs)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            coroutine = None if task is None else task.get_coro()
            if getattr(coroutine, "cr_frame", None) is not inspect.currentframe():
                raise
            return None

    return run


def is_being_cancelled() -> bool:
    """Return whether somebody has cancelled the current task.

    Otherwise a `CancelledError` in it comes from code that it calls, such as that of a user.
    """
    return cancellations() > 0


def cancellations() -> int:
    """Return how often somebody has cancelled the current task."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
