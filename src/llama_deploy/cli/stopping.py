"""Run a command until the user or the system stops it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from llama_deploy.cli.event_loop import EventLoop, Threads
from llama_deploy.cli.output import note
from llama_deploy.deploy.garbage import seldom_collecting
from llama_deploy.deploy.termination import HAND_BACK, Presses
from llama_deploy.deploy.watchdog import GRACE_SECONDS, Watchdog

logger = logging.getLogger(__name__)


def run_until_stopped(serving: Coroutine[Any, Any, None], *, loop: EventLoop, drain_seconds: float) -> None:
    """Run `serving` on an event loop until it ends, or until Ctrl-C or SIGTERM shuts it down.

    The first signal cancels it, and services drain. A second Ctrl-C cancels it again, and services hand back
    their tasks. A third one exits at once; the tasks move to other instances when the leases expire.
    The process ends `drain_seconds` and 2 s after the first signal at the latest, with 128 and the number of
    the signal as its exit code: 143 after SIGTERM, 130 after Ctrl-C.

    What ends the loop in another task, such as `sys.exit()` in one that a step has left behind, ends that
    task only.

    Args:
        serving: What to run.
        loop: Runs it.
        drain_seconds: How long running tasks may take to end.
    """
    with asyncio.Runner(loop_factory=loop.factory) as runner, seldom_collecting():
        running = runner.get_loop()
        running.set_default_executor(Threads())
        main = running.create_task(_until_stopped(serving, drain_seconds))
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


async def _until_stopped(serving: Coroutine[Any, Any, None], drain_seconds: float) -> None:
    task = asyncio.create_task(serving)
    with _stopping(task, drain_seconds):
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    note("Stopped.")


@contextmanager
def _stopping(task: asyncio.Task[None], drain_seconds: float) -> Iterator[None]:
    """Let signals stop a task, and end this process in time. After a signal that holds to its very end."""
    watchdog = Watchdog({signal.SIGINT, signal.SIGTERM}, drain_seconds=drain_seconds)
    stop = _Stop(asyncio.get_running_loop(), task, watchdog)
    watchdog.open()
    watchdog.handle(signal.SIGINT, stop)
    watchdog.handle(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if not stop.is_requested:
            watchdog.close()


class _Stop:
    """Reacts to each request to stop. It is a signal handler: the event loop may be blocked."""

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None], watchdog: Watchdog) -> None:
        self._loop = loop
        self._task = task
        self._watchdog = watchdog
        self._presses = Presses()
        self.is_requested = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Drain at first. Ctrl-C again hands back tasks, and once more exits; SIGTERM again has no effect."""
        del frame
        code = 128 + signum
        if not self.is_requested:
            self.is_requested = True
            self._presses.add()
            hint = "" if signum == signal.SIGTERM else " Press Ctrl-C again to hand them back now."
            self._request(f"Waiting for running tasks, then stopping.{hint}")
            self._watchdog.expect_end(code)
        elif signum == signal.SIGINT and (count := self._presses.add()) is not None:
            if count == HAND_BACK:
                self._request("Handing back the running tasks. Press Ctrl-C again to exit now.")
                self._watchdog.expect_end(code, seconds=GRACE_SECONDS)
            else:
                self._watchdog.expect_end(code, seconds=0)

    def _request(self, message: str) -> None:
        def react() -> None:
            note(message)
            self._task.cancel()

        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(react)
