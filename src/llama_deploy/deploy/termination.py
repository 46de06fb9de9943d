"""Graceful shutdown on SIGTERM, and a quiet one on Ctrl-C."""

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


@contextmanager
def quiet_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C end the call in this context without an error, as `deploy_core` did in 0.6.

    `asyncio.run` cancels the program's main task. That cancellation ends here: the program goes on after the
    call. A cancellation for another reason is raised. Does nothing outside of the main thread, or if the
    program handles SIGINT itself without cancelling.
    """
    handler = signal.getsignal(signal.SIGINT)
    task = asyncio.current_task()
    if task is None or not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        handler(signum, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except asyncio.CancelledError:
        if not interrupted or task.uncancel():
            raise
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, handler)


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
