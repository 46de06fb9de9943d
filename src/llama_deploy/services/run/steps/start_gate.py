"""Holds steps back until what they depend on is stored, so that one write serves many steps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class StartGate:
    """Starts coroutines as tasks that do nothing until the gate is opened."""

    def __init__(self) -> None:
        self._opened: asyncio.Event | None = None

    @property
    def is_holding(self) -> bool:
        """Whether tasks wait."""
        return self._opened is not None

    def hold(self, coro: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Return a task that awaits `coro` once the gate is opened. If cancelled before, it closes `coro`."""
        if self._opened is None:
            self._opened = asyncio.Event()
        task = asyncio.create_task(_after(self._opened, coro))
        # A task that is cancelled before it begins does not run a line of its own.
        task.add_done_callback(lambda _: coro.close())
        return task

    def open(self) -> None:
        """Let the tasks that wait continue. Idempotent."""
        if self._opened is not None:
            self._opened.set()
            self._opened = None


async def _after(opened: asyncio.Event, coro: Coroutine[Any, Any, Result]) -> Result:
    await opened.wait()
    return await coro
