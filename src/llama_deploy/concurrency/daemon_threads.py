"""Threads that are never joined, and that are replaced when their call is abandoned.

A thread cannot be interrupted. One that runs a job for ever must neither take the place of other jobs nor
keep the process from ending. `ThreadPoolExecutor` does both: it counts such a thread, and joins it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Job:
    """A call that is to run in a thread."""

    run: Callable[[], None]
    """Must not raise."""
    label: str = ""
    """Added to the name of the thread while the job runs."""
    thread: threading.Thread | None = field(default=None, init=False)
    """The thread that runs it now."""
    is_abandoned: bool = field(default=False, init=False)
    """Whether nobody waits for it."""


class DaemonThreads:
    """Runs jobs in daemon threads, in the order of submission. Thread-safe.

    A thread whose job is abandoned while it runs is *lost*: it does not count any more, another one may take
    its place, and it ends when its job does.

    Args:
        name: Begins the names of the threads.
        limit: How many threads there are at most, lost ones excluded. They are started when they are needed.
        on_found: Called in a lost thread when its job has ended.
    """

    def __init__(self, name: str, *, limit: int, on_found: Callable[[], None] | None = None) -> None:
        self._name = name
        self._limit = limit
        self._on_found = on_found
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._count = 0
        """How many threads there are, without lost ones."""
        self._free = 0
        """How many of them are ready for a job, less the jobs that wait."""
        self._started = 0
        self._lost = 0
        self._is_closed = False

    @property
    def lost(self) -> int:
        """How many lost threads there are."""
        return self._lost

    def submit(self, job: Job) -> None:
        """Run a job as soon as a thread is free.

        Raises:
            RuntimeError: `close` was called.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads of {self._name} are closed")
            self._free -= 1
            self._jobs.put(job)
            thread = self._needed()
        if thread is not None:
            thread.start()

    def abandon(self, job: Job) -> bool:
        """Tell that nobody waits for a job any more: it does not begin, or its thread is lost.

        Returns:
            Whether it runs now.
        """
        with self._lock:
            was_abandoned, job.is_abandoned = job.is_abandoned, True
            if job.thread is None or was_abandoned:
                return False
            job.thread.name += " (lost)"
            self._lost += 1
            self._count -= 1
            thread = self._needed()
        if thread is not None:
            thread.start()
        return True

    def close(self) -> None:
        """End the threads when they have run what was submitted. Does not wait for them. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for _ in range(self._count):
                    self._jobs.put(None)

    def _needed(self) -> threading.Thread | None:
        """Return a thread to start, if a job waits for it."""
        if self._free >= 0 or self._count >= self._limit:
            return None
        self._count += 1
        self._free += 1
        self._started += 1
        if self._is_closed:
            self._jobs.put(None)
        return threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)

    def _work(self) -> None:
        thread = threading.current_thread()
        name = thread.name
        while (job := self._jobs.get()) is not None:
            with self._lock:
                skip = job.is_abandoned
                if not skip:
                    job.thread = thread
                    thread.name = f"{name} {job.label}" if job.label else name
            if not skip:
                job.run()
            with self._lock:
                job.thread = None
                is_lost = job.is_abandoned and not skip
                if is_lost:
                    self._lost -= 1
                else:
                    self._free += 1
            if is_lost:
                break
            thread.name = name
            del job  # what it refers to must not live until the next one
        else:
            return
        if self._on_found is not None:
            self._on_found()


class DaemonExecutor(ThreadPoolExecutor):
    """An executor of `DaemonThreads`. Its shutdown waits for nothing.

    A call whose future is cancelled while it runs loses its thread, which is replaced. It is a
    `ThreadPoolExecutor` because event loops accept no other class as their default one.

    Args:
        name: Begins the names of the threads.
        limit: How many threads there are at most.
    """

    def __init__(self, name: str, *, limit: int) -> None:
        super().__init__(max_workers=limit)
        self._daemons = DaemonThreads(name, limit=limit)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call a function in a thread."""
        return _Call(self._daemons, lambda: fn(*args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the base class has them
        """Accept no further calls. What runs or waits is left to run."""
        self._daemons.close()


class _Call(Future[T]):
    """The future of a call."""

    def __init__(self, threads: DaemonThreads, function: Callable[[], T]) -> None:
        super().__init__()
        self._threads = threads
        self._function: Callable[[], T] | None = function
        self._job: Job | None = Job(self._run)
        threads.submit(self._job)

    def cancel(self) -> bool:
        """Keep the call from starting. If it runs already, its thread is lost."""
        is_cancelled = super().cancel()
        job = self._job
        if job is not None:
            self._threads.abandon(job)
        return is_cancelled

    def _run(self) -> None:
        function, self._function = self._function, None
        if function is None or not self.set_running_or_notify_cancel():
            self._job = None
            return
        try:
            value = function()
        except BaseException as exc:  # noqa: BLE001 - handed to the caller
            self.set_exception(exc)
        else:
            self.set_result(value)
        finally:
            self._job = None  # it refers to this object
            del self, function  # the traceback of the exception refers to this frame


def in_own_thread(name: str, function: Callable[[], T]) -> asyncio.Future[T]:
    """Call a function in a new thread; the default threads of the loop may all be busy. Await the result.

    Args:
        name: Names the thread.
        function: The function. It runs on if the result is cancelled.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    threading.Thread(target=call_for, args=(outcome, loop, function), name=name, daemon=True).start()
    return outcome


def call_for(outcome: asyncio.Future[T], loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> None:
    """Call a function, and give what it returns or raises to a future of `loop`, in any thread."""
    try:
        value = function()
    except BaseException as exc:  # noqa: BLE001 - handed to the caller
        _tell(loop, outcome.set_exception, outcome, exc)
    else:
        _tell(loop, outcome.set_result, outcome, value)
    finally:
        del outcome, function  # the traceback of the exception refers to this frame


def _tell(
    loop: asyncio.AbstractEventLoop, how: Callable[[Any], None], outcome: asyncio.Future[Any], what: object
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
        loop.call_soon_threadsafe(_set, how, outcome, what)


def _set(how: Callable[[Any], None], outcome: asyncio.Future[Any], what: object) -> None:
    if not outcome.done():
        how(what)
