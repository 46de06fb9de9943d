"""How one run is ended: what asks it to end, how long that may take, and the outcome."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from workflows.errors import WorkflowCancelledByUser
from workflows.events import StopEvent, WorkflowCancelledEvent, WorkflowFailedEvent, WorkflowTimedOutEvent
from workflows.handler import WorkflowHandler

from llama_deploy.errors import FencedOutError
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_guard import StepExitError
from llama_deploy.workflow_library import abort, failure_of

logger = logging.getLogger(__name__)

CANCEL_GRACE: Final = 5.0
"""Seconds that steps may take to end after their run was cancelled or has ended."""


class RunReleasedError(Exception):
    """The run does not belong to this instance any more; nothing of it may continue here."""


class RunEnding:
    """Asks one run to end, and tells how it has ended.

    Args:
        label: Names the run in the log.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self.fault: Exception | None = None
        """Why the run cannot continue. The first reason counts."""
        self.is_cancelled = False
        """Whether the run was asked to end."""
        self.dead_end: str | None = None
        """Why the run cannot continue although it has not ended. None: it works, or waits."""
        self.is_parked = False
        """Whether the run has left memory, to be resumed when something wakes it."""
        self.is_over = False
        """Whether `WorkflowRun.execute` has returned or is about to."""
        self.last_event: StopEvent | None = None
        """The event with which the run's stream has ended."""
        self.given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the run's steps are not waited for any more, or its result is known."""
        self._starting: asyncio.Task[WorkflowHandler] | None = None
        self._handler: WorkflowHandler | None = None
        self._canceller: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def starting(self, starting: asyncio.Task[WorkflowHandler]) -> None:
        """The run is being started by this task."""
        self._starting = starting

    def started(self, handler: WorkflowHandler) -> None:
        """The run has started."""
        self._handler = handler
        if self.is_cancelled or self.fault is not None:
            self._cancel_handler(handler)

    async def until_over(self, result: asyncio.Future[StopEvent]) -> None:
        """Return when the result of a run that has started is known, or is not waited for any more."""
        result.add_done_callback(self._give_up)
        await self.given_up

    def cancel(self) -> None:
        """Ask the run to end. Idempotent."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self._stop()

    def fail(self, fault: Exception) -> None:
        """End the run because of its environment."""
        if self.fault is None:
            self.fault = fault
            self._stop()

    def parked(self) -> None:
        """The run is stored, and leaves memory."""
        self.is_parked = True
        self._give_up()

    def ended(self, event: StopEvent) -> None:
        """The run's stream has ended."""
        self.last_event = event
        # A step that ignores its cancellation holds back the result, but must not hold back the outcome.
        self._expect_end()

    def close(self, result: asyncio.Future[StopEvent]) -> None:
        """Release the run. Steps that do not end are left running."""
        handler = self._handler
        # The handler refers to the run's context, and that to this object: they would wait for the collector.
        self._handler = self._starting = None
        if handler is None or (result.done() and not self.is_parked):
            return
        if self.is_parked:
            abort(handler)
        else:
            logger.warning(
                "%s: its steps ignore their cancellation and keep running although the run has ended",
                self._label,
                extra={"action": "abandon_run"},
            )
            self._cancel_handler(handler)
        result.cancel()

    def finish(self) -> None:
        """The outcome is decided: nothing more of the run counts. Idempotent."""
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def outcome_before_start(self) -> RunOutcome | None:
        """Return the outcome of a run that was stopped in a `run` method of the workflow's own.

        None: the run belongs to another instance.
        """
        if self.fault is not None:
            return _fault_outcome(self.fault)
        if self.is_cancelled:
            return RunOutcome.cancelled()
        return RunOutcome.failed(StepExitError("run", asyncio.CancelledError()))

    def outcome(self, result: asyncio.Future[StopEvent]) -> RunOutcome | None:
        """Return the outcome of a run that has started.

        None: there is nothing to report; the run is parked, or belongs to another instance.

        Args:
            result: The result of the run, if it is done.
        """
        if self.is_parked or self._handler is None:
            return None
        known = result.done() and not result.cancelled()
        exc = failure_of(result) if known else None
        last = self.last_event
        fault = self.fault or (exc if isinstance(exc, FencedOutError | RunReleasedError) else None)
        if fault is not None:
            return _fault_outcome(fault)
        # Only the stream tells a run that timed out from a step that raised the error of another run.
        if isinstance(last, WorkflowTimedOutEvent):
            return RunOutcome.timed_out(last, exc, dead_end=self.dead_end)
        if isinstance(last, WorkflowFailedEvent):
            return RunOutcome.failed(last.exception if exc is None else exc)
        if exc is not None and not isinstance(exc, WorkflowCancelledByUser):
            return RunOutcome.failed(exc)
        stop = result.result() if known and exc is None else last
        if isinstance(stop, WorkflowCancelledEvent):
            stop = None
        return RunOutcome.cancelled() if stop is None else RunOutcome.succeeded(stop, self._handler.ctx)

    def _stop(self) -> None:
        if self._handler is not None:
            self._cancel_handler(self._handler)
        elif self._starting is not None:
            self._starting.cancel()
            self._expect_end()

    def _cancel_handler(self, handler: WorkflowHandler) -> None:
        if self._canceller is None:
            self._canceller = asyncio.create_task(handler.cancel_run(timeout=CANCEL_GRACE))
            self._expect_end()

    def _expect_end(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CANCEL_GRACE, self._give_up)

    def _give_up(self, _result: object = None) -> None:
        if not self.given_up.done():
            self.given_up.set_result(None)


def _fault_outcome(fault: Exception) -> RunOutcome | None:
    return None if isinstance(fault, FencedOutError | RunReleasedError) else RunOutcome.failed(fault)
