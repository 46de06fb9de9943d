"""Graceful shutdown on SIGTERM, and a quiet one on Ctrl-C, in programs with an event loop of their own."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Final

from llama_deploy.deploy.watchdog import GRACE_SECONDS, Watchdog
from llama_deploy.supervisor.presses import HAND_BACK, Presses


@contextmanager
def stopped_by_signals(drain_seconds: float) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the call in this context in time.

    SIGTERM cancels the current task. When all tasks in such contexts have ended, the process ends by the
    signal, as it would by default. If that takes longer than `drain_seconds` and 2 s, it ends with 143, the
    code that a shell shows for the signal. Further SIGTERMs have no effect.

    After Ctrl-C `asyncio.run` cancels the program's main task. That cancellation ends here, as in 0.6: the
    program goes on after the call. A second Ctrl-C cancels the call again, and a third one ends the process
    with the code 130; so does a call that takes longer than `drain_seconds` and 2 s to end. A cancellation
    for another reason is raised.

    Does nothing outside of the main thread, or for a signal that the program handles itself. The previous
    handlers are restored.

    Args:
        drain_seconds: How long running tasks may take to end.
    """
    task = asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    deployments = _here.get("main")
    if deployments is None:
        deployments = _here["main"] = _Deployments(asyncio.get_running_loop())
    deployments.add(task, drain_seconds)
    try:
        yield
    except asyncio.CancelledError:
        if not deployments.is_interrupted or deployments.uncancel(task):
            raise
    finally:
        deployments.remove(task)
        if not deployments.tasks:
            del _here["main"]
            deployments.close()


class _Deployments:
    """The signal handlers that all deployments of a process share while they run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: dict[asyncio.Task[Any], int] = {}
        """With the number of times that Ctrl-C has cancelled each beside `asyncio.run`."""
        self.is_interrupted = False
        self._is_terminated = False
        self._loop = loop
        self._presses = Presses()
        self._found: Any = signal.getsignal(signal.SIGINT)
        is_ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        watched = {signal.SIGTERM} if is_ours else set()
        if _is_of_runner(self._found):
            watched.add(signal.SIGINT)
        self._watchdog = Watchdog(watched, drain_seconds=0.0)
        self._watchdog.open()
        if is_ours:
            self._watchdog.handle(signal.SIGTERM, self._terminate)
        if callable(self._found):
            self._watchdog.handle(signal.SIGINT, self._interrupt)

    def add(self, task: asyncio.Task[Any], drain_seconds: float) -> None:
        """A deployment runs in `task`."""
        self.tasks.setdefault(task, 0)
        self._watchdog.drain_seconds = max(self._watchdog.drain_seconds, drain_seconds)

    def remove(self, task: asyncio.Task[Any]) -> None:
        """The deployment in `task` has ended."""
        self.tasks.pop(task, None)

    def uncancel(self, task: asyncio.Task[Any]) -> int:
        """Take back the cancellations by Ctrl-C; return how many others there are."""
        for _ in range(self.tasks.get(task, 0)):
            task.uncancel()
        return task.uncancel()

    def close(self) -> None:
        """Restore the handlers. After SIGTERM the process ends."""
        self._watchdog.close()
        if self._is_terminated:
            signal.raise_signal(signal.SIGTERM)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        del frame
        if not self._is_terminated:
            self._is_terminated = True
            self._watchdog.expect_end(128 + signum)
            self._call_in_loop(self._cancel)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        if not _is_of_runner(self._found):
            self._found(signum, frame)
        elif self._presses.count == 0:
            self._presses.add()
            self._watchdog.expect_end(128 + signum)
            self._found(signum, frame)
        elif (count := self._presses.add()) == HAND_BACK:
            self._watchdog.expect_end(128 + signum, seconds=GRACE_SECONDS)
            self._call_in_loop(self._cancel_again)
        elif count is not None:
            self._watchdog.expect_end(128 + signum, seconds=0)

    def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel("SIGTERM")

    def _cancel_again(self) -> None:
        for task in self.tasks:
            self.tasks[task] += 1
            task.cancel()

    def _call_in_loop(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)


_here: Final[dict[str, _Deployments]] = {}
"""The deployments that run in the main thread of this process, if there are some."""


def _is_of_runner(handler: object) -> bool:
    """Whether a signal handler is that of `asyncio.run`, which cancels the main task at first."""
    owner = getattr(handler.func, "__self__", None) if isinstance(handler, partial) else None
    return isinstance(owner, asyncio.Runner)
