"""Threads with connections to SQLite, to which jobs are handed."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

C = TypeVar("C")
T = TypeVar("T")


class _Job(NamedTuple, Generic[C]):
    """Work for a thread, and where its outcome is waited for. None: nowhere."""

    run: Callable[[C], Any]
    outcome: asyncio.Future[Any] | None


class Lane(Generic[C]):
    """Threads that run jobs in the order of submission, each on a connection of its own.

    `ThreadPoolExecutor` would do the same, but its futures take more CPU than the short jobs here.

    Args:
        connections: The connections. The caller closes them after `finish`.
        name: The beginning of the names of the threads.
        after_job: Called in the thread after each job.
    """

    def __init__(
        self,
        connections: Sequence[C],
        *,
        name: str,
        after_job: Callable[[C], None] | None = None,
    ) -> None:
        self._after_job = after_job
        self._jobs: queue.SimpleQueue[_Job[C] | None] = queue.SimpleQueue()
        # A store that was not closed must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=(connection,), name=f"{name}-{number}", daemon=True)
            for number, connection in enumerate(connections)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, job: Callable[[C], T]) -> T:
        """Submit a job and return its value. If the caller is cancelled, a job that has begun goes on."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(job, outcome))
        return await outcome

    def post(self, job: Callable[[C], object]) -> None:
        """Submit a job that does not raise, from any thread."""
        self._jobs.put(_Job(job, None))

    def finish(self) -> None:
        """Wait for all submitted jobs and end the threads. Idempotent."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, connection: C) -> None:
        while (job := self._jobs.get()) is not None:
            if job.outcome is None:
                job.run(connection)
            elif not job.outcome.cancelled():
                self._carry_out(job.run, job.outcome, connection)
            if self._after_job is not None:
                self._after_job(connection)

    @staticmethod
    def _carry_out(run: Callable[[C], Any], outcome: asyncio.Future[Any], connection: C) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = run(connection)
        except BaseException as exc:  # noqa: BLE001 - handed to the caller
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            outcome.get_loop().call_soon_threadsafe(_tell, outcome, value, error)


def _tell(outcome: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if outcome.cancelled():
        return
    if error is None:
        outcome.set_result(value)
    else:
        outcome.set_exception(error)
