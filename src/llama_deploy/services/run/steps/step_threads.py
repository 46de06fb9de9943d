"""The threads in which the synchronous steps of a service run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

from llama_deploy.concurrency.daemon_threads import DaemonThreads, Job, call_for
from llama_deploy.running_task import running_task

logger = logging.getLogger(__name__)

THREADS_PER_TASK: Final = 4
"""How many threads a task may have on average; the library runs as many instances of a step at a time."""
_GRACE: Final = 1.0
"""Seconds that a step may go on after its run has ended before that is logged."""


class StepThreads:
    """Runs the synchronous steps of one service, each in a thread. Use it in one loop, then `close` it.

    The thread of a step whose run has ended cannot be interrupted. It is *lost*: another one takes its place,
    and it is not joined when the process ends. When too many are lost, the service must not take new tasks.

    Args:
        service_name: The service; names the threads.
        limit: How many steps run at a time. Further ones wait, which counts as working for their runs.
        max_lost: From how many lost threads on the service must not take new tasks.
        on_change: Called in the loop when `can_start` has changed.
    """

    def __init__(
        self,
        service_name: str,
        *,
        limit: int,
        max_lost: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._service_name = service_name
        self._limit = limit
        self._max_lost = max_lost
        self._on_change = on_change
        self._threads = DaemonThreads(f"{service_name}-step", limit=limit, on_found=self._tell_found)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = 0
        self._has_waited = False
        self._can_start = True

    def can_start(self) -> bool:
        """Whether few enough threads are lost for new tasks."""
        return self._can_start

    async def run(self, step_name: str, function: Callable[[], Any]) -> Any:
        """Call a function of a step in a thread, and return what it returns.

        Raises:
            RuntimeError: `close` was called.
            BaseException: What the function raises, but not a `StopIteration`, which a future cannot hold.
        """
        self._loop = loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()
        job = Job(partial(call_for, outcome, loop, function), label=step_name)
        self._threads.submit(job)
        self._running += 1
        if self._running > self._limit and not self._has_waited:
            self._log_waiting(step_name)
        try:
            return await outcome
        finally:
            self._running -= 1
            if (not outcome.done() or outcome.cancelled()) and self._threads.abandon(job):
                self._note_lost(step_name, job)
            # The traceback of an exception refers to this frame.
            del outcome, job

    def close(self) -> None:
        """End the threads when their steps have ended. Does not wait for them. Idempotent."""
        self._threads.close()

    def _note_lost(self, step_name: str, job: Job) -> None:
        task = running_task.get()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_later(
                _GRACE, self._log_lost, step_name, None if task is None else task.task_id, job
            )
        self._check()

    def _log_lost(self, step_name: str, task_id: str | None, job: Job) -> None:
        if job.thread is None:
            return
        logger.warning(
            "service %s: the step %r of task %s still runs in its thread although its run has ended. It"
            " cannot be interrupted; another thread takes its place. Lost threads now: %d. Give the calls in"
            " the step a time limit",
            self._service_name,
            step_name,
            task_id,
            self._threads.lost,
            extra={"action": "thread_lost", "service_name": self._service_name, "task_id": task_id},
        )

    def _log_waiting(self, step_name: str) -> None:
        self._has_waited = True
        logger.warning(
            "service %s: the step %r waits for a thread, because %d synchronous steps are running. Set"
            " max_step_threads if more of them should run at a time. Later waits are not logged",
            self._service_name,
            step_name,
            self._limit,
            extra={"action": "thread_wait", "service_name": self._service_name},
        )

    def _tell_found(self) -> None:
        """Called in a lost thread that ends."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._check)
            except RuntimeError:  # it was closed just now
                return

    def _check(self) -> None:
        can_start = self._threads.lost < self._max_lost
        if can_start is self._can_start:
            return
        self._can_start = can_start
        if can_start:
            logger.info(
                "service %s takes tasks again: some lost threads have ended",
                self._service_name,
                extra={"action": "threads_found", "service_name": self._service_name},
            )
        else:
            logger.error(
                "service %s takes no new tasks in this process: %d threads are lost to synchronous steps that"
                " do not end although their runs have ended. Restart the process, and give the calls in its"
                " steps a time limit; max_lost_threads sets how many may be lost",
                self._service_name,
                self._threads.lost,
                extra={"action": "threads_exhausted", "service_name": self._service_name},
            )
        self._on_change()


step_threads: ContextVar[StepThreads | None] = ContextVar("step_threads", default=None)
"""The threads for the synchronous steps of the runs in this context. None: the default ones of the loop."""
