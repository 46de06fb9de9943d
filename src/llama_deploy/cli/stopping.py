"""Run a command until the user or the system stops it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

import uvloop

from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.output import note
from llama_deploy.deploy.garbage import seldom_collecting

_SAME_PRESS_SECONDS: Final = 0.3
"""Ctrl-C twice within this time counts once: a terminal and a wrapper may both send the signal."""


def run_until_stopped(serving: Coroutine[Any, Any, None]) -> None:
    """Run `serving` on uvloop until it ends, or until Ctrl-C or SIGTERM shuts it down.

    The first signal cancels it, and services drain. A second Ctrl-C cancels it again, and services hand back
    their tasks. A third one exits at once; the tasks move to other instances when the leases expire.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, seldom_collecting():
        runner.run(_until_stopped(serving))


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
