"""Run a command until the user or the system stops it."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from llama_deploy.cli.event_loop import EventLoop, Threads
from llama_deploy.cli.output import note
from llama_deploy.deploy.garbage import seldom_collecting
from llama_deploy.deploy.watchdog import GRACE_SECONDS, Watchdog
from llama_deploy.supervisor.link import SupervisorLink
from llama_deploy.supervisor.presses import HAND_BACK, HANDING_BACK, Presses, draining
from llama_deploy.supervisor.supervisor import CHILD_GRACE, Stop

logger = logging.getLogger(__name__)


def run_until_stopped(
    serving: Coroutine[Any, Any, None],
    *,
    loop: EventLoop,
    drain_seconds: float | None,
    link: SupervisorLink | None = None,
) -> int | None:
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
        drain_seconds: How long running tasks may take to end. None: other processes run them, and end in
            time.
        link: The link to the supervisor of this process, which tells when to stop. None: it has none.

    Returns:
        The first signal. None: `serving` has ended by itself.
    """
    with asyncio.Runner(loop_factory=loop.factory) as runner, seldom_collecting():
        running = runner.get_loop()
        running.set_default_executor(Threads())
        main = running.create_task(_until_stopped(serving, drain_seconds, link))
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
    result = main.result()
    # The interpreter would look for garbage in all that was imported, which takes as long as the import.
    gc.freeze()
    if link is not None:
        link.done()
    return result


async def _until_stopped(
    serving: Coroutine[Any, Any, None], drain_seconds: float | None, link: SupervisorLink | None
) -> int | None:
    task = asyncio.create_task(serving)
    with _stopping(task, drain_seconds, link) as stop:
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()
    if link is None:
        note("Stopped.")
    return stop.first


@contextmanager
def _stopping(
    task: asyncio.Task[None], drain_seconds: float | None, link: SupervisorLink | None
) -> Iterator[_Stop]:
    """Let signals stop a task, and end this process in time. After a signal that holds to its very end."""
    # The supervisor tells what a Ctrl-C means, which all processes of a terminal get.
    signals = {signal.SIGINT, signal.SIGTERM} if link is None else {signal.SIGTERM}
    grace = GRACE_SECONDS if link is None else CHILD_GRACE
    drain_seconds = math.inf if drain_seconds is None else drain_seconds
    watchdog = Watchdog(signals, drain_seconds=drain_seconds, grace=grace)
    stop = _Stop(asyncio.get_running_loop(), task, watchdog, grace=grace, is_quiet=link is not None)
    watchdog.open()
    for signum in signals:
        watchdog.handle(signum, stop)
    if link is not None:
        link.on_stop(stop.obey)
    try:
        yield stop
    finally:
        if stop.first is None:
            watchdog.close()


class _Stop:
    """Reacts to each request to stop. It is a signal handler: the event loop may be blocked.

    Args:
        loop: The loop of the task.
        task: Cancelled with each request.
        watchdog: Ends the process in time.
        grace: How many seconds handing back tasks may take.
        is_quiet: Whether another process tells the user.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[None],
        watchdog: Watchdog,
        *,
        grace: float,
        is_quiet: bool,
    ) -> None:
        self._loop = loop
        self._task = task
        self._watchdog = watchdog
        self._is_quiet = is_quiet
        self._presses = Presses()
        self._grace = grace
        self.first: int | None = None
        """The first signal, or SIGTERM if the supervisor has asked. None: there was none."""

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Drain. A second Ctrl-C hands back tasks, and a third one exits. Further SIGTERMs are ignored."""
        del frame
        code = 128 + signum
        if self.first is None:
            self.first = signum
            self._presses.add()
            self._drain(draining(signum), code)
        elif signum == signal.SIGINT and (count := self._presses.add()) is not None:
            if count == HAND_BACK:
                self._hand_back(HANDING_BACK, code)
            else:
                self._watchdog.expect_end(code, seconds=0)

    def obey(self, how: str) -> None:
        """Stop as the supervisor says: see `Stop`. Thread-safe."""
        code = 128 + signal.SIGTERM
        if how == Stop.HAND_BACK:
            self._hand_back("", code)
        elif self.first is None:  # it may have got a signal too
            self.first = signal.SIGTERM
            self._drain("", code)

    def _drain(self, message: str, code: int) -> None:
        self._request(message)
        self._watchdog.expect_end(code)

    def _hand_back(self, message: str, code: int) -> None:
        self._request(message)
        self._watchdog.expect_end(code, seconds=self._grace)

    def _request(self, message: str) -> None:
        def react() -> None:
            if not self._is_quiet:
                note(message)
            self._task.cancel()

        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(react)
