"""One run of a workflow, from its start to its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from workflows import Workflow
from workflows.handler import WorkflowHandler

from llama_deploy.errors import FencedOutError, RunStuckError
from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.run.hosting import hosting
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.journal.journal_format import RunHistory
from llama_deploy.services.run.journal.run_journal import RunJournal
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_ending import RunEnding
from llama_deploy.services.run.run_observer import RunHooks, RunObserver
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_guard import StepExitError, StepWatch, watching
from llama_deploy.services.run.time_budget import TimeBudget
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.types import TaskStatus
from llama_deploy.workflow_library import TickTimeout, result_of

_MIN_PARKED_SECONDS: Final = 0.5
"""A run that only has to wait this long stays in memory."""

Start: TypeAlias = Callable[[], WorkflowHandler | Coroutine[Any, Any, WorkflowHandler]]
"""Starts a run. A coroutine is awaited in a task of its own, which may be cancelled."""

OpenJournal: TypeAlias = Callable[[RunClock, Callable[[Exception], None]], RunJournal]
"""Returns the journal of a run, given the run's clock and what to call when the journal cannot be written."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How long a run may take, in seconds."""

    timeout: float | None
    """How long it may work, over all its attempts. None: without limit."""
    idle_timeout: float | None = None
    """How long it may wait in memory for something from outside. None: without limit."""


class WorkflowRun:
    """One run, started or resumed. Create it and await `execute` in the same loop, once.

    Args:
        workflow: The workflow.
        start: Starts or resumes the run.
        inbox: The events that clients send.
        hooks: The owner of the run.
        label: Names the run in the log.
        limits: How long the run may work, and how long it may wait in memory.
        history: What earlier attempts have left of the run. None: nothing.
        open_journal: Returns where the run is written. None: nowhere, and its next attempt starts from the
            beginning.
    """

    def __init__(
        self,
        workflow: Workflow,
        *,
        start: Start,
        inbox: RunInbox,
        hooks: RunHooks,
        label: str,
        limits: RunLimits,
        history: RunHistory | None = None,
        open_journal: OpenJournal | None = None,
    ) -> None:
        history = history or RunHistory()
        self._start = start
        self._inbox = inbox
        self._timeout = limits.timeout
        self._waits = history.waits
        self._ending = RunEnding(label)
        self.clock = RunClock(
            TimeBudget(
                limits.timeout,
                on_over=self._time_out,
                used=0.0 if history.record is None else history.record.running_seconds,
                on_progress=self._note_time,
            ),
            idle_timeout=limits.idle_timeout,
            on_idle=self.park,
            on_stuck=self._fail_stuck,
        )
        self.journal = None if open_journal is None else open_journal(self.clock, self._ending.fail)
        self._observer = RunObserver(
            workflow=workflow,
            history=history,
            inbox=inbox,
            journal=self.journal,
            clock=self.clock,
            ending=self._ending,
            hooks=hooks,
        )
        self._is_parking = False
        self._background = BackgroundTasks(label)

    @property
    def is_parked(self) -> bool:
        """Whether the run has left memory, to be resumed when something wakes it."""
        return self._ending.is_parked

    def only_waits(self, seconds: float) -> bool:
        """Whether it only waits for something from outside, for so long at least unless that comes.

        May be called in any thread.
        """
        if not self.clock.is_waiting:
            return False
        timer = self._waits.seconds_to_next(now=self.clock.now())
        return timer is None or timer > seconds

    def cancel(self) -> None:
        """Ask the run to end; `execute` returns within `CANCEL_GRACE` seconds. Idempotent."""
        self._ending.cancel()

    def park(self) -> None:
        """Let the run leave memory if it only waits; `execute` then returns None. Idempotent."""
        if self.journal is None or self.journal.volatility:
            return
        if self._is_parking or self._ending.is_cancelled or not self.clock.is_waiting:
            return
        self._is_parking = True
        self._background.spawn(self._park(self.journal))

    def abandon(self) -> None:
        """Stop the run, which belongs to another instance; `execute` then returns None. Idempotent."""
        if self.journal is not None:
            self.journal.stop()
        self._ending.fail(FencedOutError("the run belongs to another instance"))

    async def execute(self) -> RunOutcome | None:
        """Run the workflow to its end. An exception becomes the outcome; a cancellation cancels the run.

        Returns:
            None if there is nothing to report: the run is parked, or belongs to another instance.
        """
        context = copy_context()
        context.run(hosting.set, self._observer)
        watch = StepWatch(
            self.clock.step_begins,
            self.clock.step_ends,
            None if self.journal is None else self.journal.volatility.on_change,
            self._observer.on_item,
            self._observer.hooks.steps,
            self._observer.hooks.trail,
            None if self.journal is None else self.journal.writer.size.point_of_step,
            self._observer.hooks.on_step,
        )
        context.run(watching.set, watch)
        try:
            started = context.run(self._start)
            handler = (
                started if isinstance(started, WorkflowHandler) else await self._started_by(started, context)
            )
            if handler is None:
                return self._ending.outcome_before_start()
            return await self._finish(handler)
        except Exception as exc:  # noqa: BLE001 - the workflow's own code, and the boundary of the task
            return RunOutcome.failed(exc)
        finally:
            self._end()

    async def _started_by(
        self, start: Coroutine[Any, Any, WorkflowHandler], context: Context
    ) -> WorkflowHandler | None:
        """Await a workflow's own way to start. None: the run was stopped meanwhile."""
        starting = asyncio.create_task(_begin(start), context=context)
        self._ending.starting(starting)
        try:
            either: set[asyncio.Future[Any]] = {starting, self._ending.given_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return None if not starting.done() or starting.cancelled() else starting.result()
        finally:
            starting.cancel()

    async def _finish(self, handler: WorkflowHandler) -> RunOutcome | None:
        result = result_of(handler)
        try:
            self._ending.started(handler)
            await self._inbox.open(handler.send_event, tell=self._tell)
            await self._ending.until_over(result)
            outcome = self._ending.outcome(result)
            if self.journal is not None and outcome is not None:
                await self._keep(self.journal, outcome)
            return outcome
        finally:
            self._end()
            self._background.cancel()
            self._observer.close()
            self._inbox.close()
            self._ending.close(result)

    async def _keep(self, journal: RunJournal, outcome: RunOutcome) -> None:
        if outcome.status is not TaskStatus.SUCCEEDED:
            self._end()
            await journal.keep(failed=outcome.status is TaskStatus.FAILED)

    def _tell(self, event: StreamedEvent) -> None:
        """Stream an event that the workflow has not written."""
        self._background.spawn(self._observer.tell(event))

    def _end(self) -> None:
        self._ending.finish()
        self.clock.stop()

    def _note_time(self) -> None:
        """Have the time stored that the run has worked, in a step that lasts long."""
        if self.journal is not None:
            self.journal.store_time()

    def _time_out(self) -> None:
        if self._timeout is not None:
            # The library would compare its own measure, which lacks what other attempts have not written.
            over = TickTimeout(timeout=self._timeout, stamped_at=self.clock.now() + self._timeout)
            self._background.spawn(self._observer.send(over))

    def _fail_stuck(self) -> None:
        if self._ending.dead_end is not None:
            self._ending.fail(RunStuckError(f"the run cannot end: {self._ending.dead_end}"))

    async def _park(self, journal: RunJournal) -> None:
        """Leave memory, unless something comes in the meantime."""
        wake_in = self._waits.seconds_to_next(now=self.clock.now())
        if wake_in is not None and wake_in < _MIN_PARKED_SECONDS:
            self._is_parking = False  # a step is about to start
            self.clock.wait_again()
            return
        self._inbox.hold()
        try:
            is_parked = await journal.park()
        except Exception as exc:  # noqa: BLE001 - whatever prevents parking ends the run
            self._ending.fail(exc)
            is_parked = False
        if is_parked:
            self._ending.parked()
            return
        self._is_parking = False
        await self._inbox.release()
        if self.clock.is_waiting:
            self.clock.wait_again()


async def _begin(start: Coroutine[Any, Any, WorkflowHandler]) -> WorkflowHandler:
    try:
        return await start
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as exc:
        raise StepExitError("run", exc) from exc
