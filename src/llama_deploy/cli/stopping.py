"""Run a command until the user or the system stops it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

from llama_deploy.cli.event_loop import EventLoop, Threads
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.deploy.garbage import seldom_collecting

logger = logging.getLogger(__name__)

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""


def run_until_stopped(serving: Coroutine[Any, Any, None], *, loop: EventLoop) -> None:
    """Run `serving` on an event loop until it ends, or until Ctrl-C or SIGTERM shuts it down.

    The first signal cancels it, and services drain. A second Ctrl-C cancels it again, and services hand back
    their tasks. A third one exits at once; the tasks move to other instances when the leases expire.

    What ends the loop in another task, such as `sys.exit()` in one that a step has left behind, ends that
    task only.
    """
    with asyncio.Runner(loop_factory=loop.factory) as runner, seldom_collecting():
        running = runner.get_loop()
        running.set_default_executor(Threads())
        main = running.create_task(_until_stopped(serving))
        while not main.done():
            try:
                running.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt) as exc:
                if main.done():
                    raise
                logger.exception(
                    "a task that a workflow has started raised %s; it has ended, and this process goes on",
                    type(exc).__name__,
                    extra={"action": "exit_in_task"},
                )


async def _until_stopped(serving: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(serving)
    stop = _Stop(loop, task)
    loop.add_signal_handler(signal.SIGINT, stop.interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.terminate)
    try:
        await asyncio.wait({task})
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)
    if not task.cancelled():
        task.result()
    note("Stopped.")


class _Stop:
    """Reacts to each request to stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        self._loop = loop
        self._task = task
        self._requests = 0
        self._last = 0.0

    def terminate(self) -> None:
        """Drain; a repeated signal has no effect."""
        if self._requests == 0:
            self._request("Waiting for running tasks, then stopping.")

    def interrupt(self) -> None:
        """Drain, then hand back tasks, then exit."""
        if self._requests and self._loop.time() - self._last < _SAME_PRESS_SECONDS:
            return
        if self._requests == 0:
            self._request(
                "Waiting for running tasks, then stopping. Press Ctrl-C again to hand them back now."
            )
        elif self._requests == 1:
            self._request("Handing back the running tasks. Press Ctrl-C again to exit now.")
        else:
            os._exit(ExitCode.INTERRUPTED)

    def _request(self, message: str) -> None:
        self._requests += 1
        self._last = self._loop.time()
        note(message)
        self._task.cancel()
