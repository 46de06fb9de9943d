"""How a service is launched: in the running loop, with or without an HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from llama_deploy.errors import ConfigError
from llama_deploy.services.background import end


class Launch:
    """Runs the processing loop of a service in a task.

    Args:
        process: The processing loop; runs until cancelled.
        name: Names the task.
    """

    def __init__(self, process: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        self._process = process
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self.listening = asyncio.Event()
        """Set when the service can be reached."""
        self._consuming_ended = asyncio.Event()

    def begin(self) -> asyncio.Task[None]:
        """Start the processing loop."""
        self._task = asyncio.create_task(self._process(), name=self._name)
        self._task.add_done_callback(lambda _: self.end_consuming())
        return self._task

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Run the processing loop while the context is open; leaving it drains."""
        task = self.begin()
        try:
            yield task
        finally:
            await end([task])

    async def wait_for_end(self) -> asyncio.Task[None]:
        """Wait until the processing loop ends, and return its task. Cancelling this call drains.

        Raises:
            ConfigError: The loop was not started.
        """
        task = self._task
        if task is None:
            raise ConfigError(f"{self._name} has stopped")
        try:
            await asyncio.wait({task})
        finally:
            await end([task])
        return task

    def begin_consuming(self) -> None:
        """Let `wait_consuming` wait, unless the service has stopped."""
        if self._task is None or not self._task.done():
            self._consuming_ended.clear()

    async def wait_consuming(self) -> None:
        """Wait until the service stops, or `end_consuming` is called."""
        await self._consuming_ended.wait()

    def end_consuming(self) -> None:
        """End `wait_consuming`. Idempotent."""
        self._consuming_ended.set()
