"""Run a command that serves until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from typing import Any, Final

import typer
import uvloop

from llama_deploy.cli.error_messages import ExitCode

_SAME_PRESS_SECONDS: Final = 0.3
"""Signals that follow this quickly are one: a terminal and a wrapper may both send Ctrl-C."""


def run_until_stopped(serving: Coroutine[Any, Any, None]) -> None:
    """Run `serving` on uvloop; Ctrl-C and SIGTERM end it in order, and this then returns.

    The first of them cancels it once, which lets services drain. A second Ctrl-C cancels it again, which
    hurries them. A third one ends the process at once; leases bring back what it leaves.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
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
    typer.echo("Stopped.", err=True)


class _Stop:
    """Counts the requests to stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        self._loop = loop
        self._task = task
        self._requests = 0
        self._last = 0.0

    def terminate(self) -> None:
        """Drain; again changes nothing."""
        if self._requests == 0:
            self._request("Stopping: what runs may end.")

    def interrupt(self) -> None:
        """Drain, then hurry, then give up."""
        if self._requests and self._loop.time() - self._last < _SAME_PRESS_SECONDS:
            return
        if self._requests == 0:
            self._request("Stopping: what runs may end; Ctrl-C again hands it back at once.")
        elif self._requests == 1:
            self._request("Handing back what runs; Ctrl-C again ends this at once.")
        else:
            os._exit(ExitCode.INTERRUPTED)

    def _request(self, words: str) -> None:
        self._requests += 1
        self._last = self._loop.time()
        typer.echo(words, err=True)
        self._task.cancel()
