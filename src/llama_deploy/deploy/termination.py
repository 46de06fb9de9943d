"""Graceful shutdown on SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def drained_on_sigterm() -> Iterator[None]:
    """Let SIGTERM cancel the current task. The process ends when all tasks in this context have ended.

    The process then ends by the signal, as it would by default, so that its exit status is the expected one.
    Further SIGTERMs have no effect. Does nothing outside of the main thread, or if the program handles
    SIGTERM itself. The previous handler is restored.
    """
    task = asyncio.current_task()
    handler = signal.getsignal(signal.SIGTERM)
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    if handler is signal.SIG_DFL:
        handler = _CancelTasks(asyncio.get_running_loop())
        signal.signal(signal.SIGTERM, handler)
    if not isinstance(handler, _CancelTasks):
        yield
        return
    handler.tasks.add(task)
    try:
        yield
    finally:
        handler.tasks.discard(task)
        if not handler.tasks:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if handler.received:
                signal.raise_signal(signal.SIGTERM)


class _CancelTasks:
    """The signal handler, which all deployments of a process share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: set[asyncio.Task[object]] = set()
        self.received = False
        self._loop = loop

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if not self.received:
            self.received = True
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        for task in self.tasks:
            task.cancel("SIGTERM")
