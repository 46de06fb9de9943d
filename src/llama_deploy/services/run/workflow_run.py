"""One run of a workflow: started, streamed, cancelled, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final

from workflows import Workflow
from workflows.errors import WorkflowCancelledByUser
from workflows.events import (
    Event,
    InternalDispatchEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowIdleEvent,
    WorkflowTimedOutEvent,
)
from workflows.handler import WorkflowHandler

from llama_deploy.errors import FencedOutError, LlamaDeployError
from llama_deploy.services.run.endings import Ending
from llama_deploy.services.run.hosting import hosting
from llama_deploy.services.run.mailbox import Mailbox
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_journal import RunJournal, RunLeftError
from llama_deploy.services.run.sent_events import Sends
from llama_deploy.services.run.step_guard import StepExitError, StepWatch, watching
from llama_deploy.services.run.waits import Wait
from llama_deploy.services.values.payloads import (
    StreamedEvent,
    streamed_event,
)
from llama_deploy.workflow_library import (
    BrokerState,
    InternalRunAdapter,
    TickIdleCheck,
    TickTimeout,
    WorkflowTick,
    abort,
)

logger = logging.getLogger(__name__)

CANCEL_GRACE: Final = 5.0
"""Seconds that steps may take to end after their run was cancelled or has ended; then they are left alone."""
_WORTH_LEAVING: Final = 0.5
"""A run that has to wait no more than so many seconds stays in memory."""


@dataclass(frozen=True, slots=True)
class RunLimits:
    """How long a run may take, and what it has taken. All in seconds."""

    timeout: float | None
    """How long it may work, over all its attempts. None: without end."""
    idle_timeout: float | None = None
    """How long it may wait in memory for something from outside. None: without end."""
    spent: float = 0.0
    """How long it has worked in earlier attempts."""
    goes_on: bool = False
    """Whether an earlier attempt has begun it."""


class WorkflowRun:
    """One run, from its arguments or from where an earlier attempt left it, to its ending.

    It is the host of its run: the library tells it of each tick and each event, see `RunHost`.

    Args:
        workflow: The workflow; others that its own `run` may run are not hosted.
        start: Starts the run, or goes on with it.
        mailbox: The events that clients send.
        on_event: Takes each event that the workflow streams, in order.
        label: Names the run in the log.
        limits: How long the run may work, and how long it may wait in memory.
        on_waiting: Called when the run begins to wait for something from outside.
        hold_lease: Awaited before steps start; returns when the run is known to be this instance's.
    """

    def __init__(
        self,
        *,
        workflow: Workflow,
        start: Callable[[], Awaitable[WorkflowHandler]],
        mailbox: Mailbox,
        on_event: Callable[[StreamedEvent], Awaitable[None]],
        label: str,
        limits: RunLimits,
        on_waiting: Callable[[], None],
        hold_lease: Callable[[], Awaitable[None]],
    ) -> None:
        self.workflow = workflow
        self._start = start
        self._on_waiting = on_waiting
        self._hold_lease = hold_lease
        self._mailbox = mailbox
        self._on_event = on_event
        self._label = label
        self.clock = RunClock(
            timeout=limits.timeout,
            idle_timeout=limits.idle_timeout,
            on_timeout=self._time_out,
            on_idle=self.leave,
            spent=limits.spent,
        )
        self.journal: RunJournal | None = None
        """Where the run is written down. None: nowhere, and its next attempt begins anew."""
        self._unkept = Sends({})
        """What the steps of a run have sent that is not written down."""
        self._limits = limits
        self._adapter: InternalRunAdapter | None = None
        self._starting: asyncio.Task[WorkflowHandler] | None = None
        self._handler: WorkflowHandler | None = None
        self._cancel_requested = False
        self._canceller: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._last_event: StopEvent | None = None
        self._fault: Exception | None = None
        self._leaving = False
        self.has_left = False
        """Whether the run has left memory, to go on when something wakes it."""
        self._is_over = False
        self._has_gone_on = False
        self._timer: asyncio.TimerHandle | None = None
        self._give_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Ask the run to end; `execute` returns within `CANCEL_GRACE` seconds. Idempotent."""
        if self._cancel_requested:
            return
        self._cancel_requested = True
        self._stop()

    def leave(self) -> None:
        """Let the run leave memory if it only waits; `execute` returns None then. Idempotent."""
        if self.journal is None or self._leaving or self._cancel_requested or not self.clock.is_waiting:
            return
        self._leaving = True
        self._spawn(self._leave(self.journal))

    def fail(self, exc: Exception) -> None:
        """End the run with an error of its surroundings. The first one counts."""
        if self._fault is None:
            self._fault = exc
            self._stop()

    def abandon(self) -> None:
        """Stop the run, which belongs to another instance now; `execute` returns None. Idempotent."""
        if self.journal is not None:
            self.journal.give_up()
        self.fail(FencedOutError("the run belongs to another instance"))

    async def deliver(self) -> None:
        """Hand on the events that have come into the mailbox."""
        await self._mailbox.deliver()

    async def execute(self) -> Ending | None:
        """Run the workflow to its end. Whatever it raises becomes the ending.

        Cancelling this call cancels the run.

        Returns:
            None if the run is not this instance's any more, and there is nothing to report.
        """
        context = copy_context()
        context.run(hosting.set, self)
        watch = StepWatch(asyncio.get_running_loop(), self.clock.step_begins, self.clock.step_ends)
        context.run(watching.set, watch)
        self._starting = asyncio.create_task(self._begin(), context=context)
        try:
            either: set[asyncio.Future[Any]] = {self._starting, self._give_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._starting.done() or self._starting.cancelled():
                return self._not_begun()
            self._handler = self._starting.result()
            return await self._finish(self._handler)
        except Exception as exc:  # noqa: BLE001 - the workflow's own code, and the boundary of the task
            return Ending.failed(exc)
        finally:
            self._is_over = True
            self._starting.cancel()
            self._stop_timers()

    async def _begin(self) -> WorkflowHandler:
        try:
            return await self._start()
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as exc:
            raise StepExitError("run", exc) from exc

    def _not_begun(self) -> Ending | None:
        """Return how a run ended that was stopped in a `run` of the workflow's own."""
        if isinstance(self._fault, FencedOutError | RunLeftError):
            return None
        if self._fault is not None:
            return Ending.failed(self._fault)
        if self._cancel_requested:
            return Ending.cancelled()
        return Ending.failed(StepExitError("run", asyncio.CancelledError()))

    # -- what the library tells its host

    @property
    def keeps_ticks(self) -> bool:
        """See `RunHost`."""
        return self.journal is not None

    @property
    def broker(self) -> BrokerState | None:
        """See `RunHost`."""
        return None if self.journal is None else self.journal.broker

    @property
    def sends(self) -> Sends:
        """See `RunHost`."""
        return self._unkept if self.journal is None else self.journal.sends

    def attach(self, adapter: InternalRunAdapter) -> None:
        """See `RunHost`."""
        if self._adapter is None:
            self.clock.work()  # what has kept it from beginning does not count
        self._adapter = adapter
        if self.journal is not None:
            self.journal.attach(adapter)

    async def on_tick(self, tick: WorkflowTick) -> None:
        """See `RunHost`."""
        self._mailbox.on_tick(tick)
        self.sends.note(tick)
        if self.journal is not None:
            self.journal.note(tick)

    async def after_tick(self, tick: WorkflowTick) -> None:
        """See `RunHost`."""
        await self._mailbox.after_tick(tick)

    async def before_steps(self, *, starting: bool) -> None:
        """See `RunHost`."""
        if self._is_over:
            raise RunLeftError
        if self._limits.goes_on and not self._has_gone_on:
            self._has_gone_on = True
            await self._go_on()
        if starting:
            with self.clock.held():
                await self._before_start()
        elif self.journal is not None:
            await self.journal.before_steps(starting=False)

    async def _before_start(self) -> None:
        """Wait until steps may start: the run is this instance's, and what they depend on is stored."""
        await self._hold_lease()
        if self._fault is not None:
            raise self._fault
        self.clock.work()
        if self.journal is not None:
            await self.journal.before_steps(starting=True)

    async def on_event(self, event: Event) -> None:
        """See `RunHost`."""
        self._mailbox.on_event(event)
        if isinstance(event, WorkflowIdleEvent):
            self.clock.wait()
            self._on_waiting()
        if isinstance(event, InternalDispatchEvent) or self._last_event is not None or self._is_over:
            return
        if isinstance(event, StopEvent):
            self._last_event = event
            # A step that ignores its cancellation holds back the result, but not the ending.
            self._expect_end()
        elif self._fault is None:
            try:
                with self.clock.held():  # where too many wait to leave
                    await self._on_event(streamed_event(event))
            except LlamaDeployError as exc:
                self.fail(exc)

    # -- how it ends

    async def _finish(self, handler: WorkflowHandler) -> Ending | None:
        result: asyncio.Future[StopEvent] = asyncio.ensure_future(handler.stop_event_result())
        try:
            if self._cancel_requested or self._fault is not None:
                self._cancel_handler(handler)
            await self._mailbox.open(handler.send_event)
            either: set[asyncio.Future[Any]] = {result, self._give_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return None if self.has_left else self._ending(handler, result)
        finally:
            self._is_over = True
            self._stop_timers()
            for helper in self._helpers:
                helper.cancel()
            if self.has_left:
                abort(handler)
                result.cancel()
            elif not result.done():
                self._abandon(handler, result)

    async def _go_on(self) -> None:
        """Tell a run that goes on what it cannot know: which waits are over, and whether it waits at all."""
        if self._adapter is None or self.journal is None:
            return
        for wait in self.journal.waits.all():
            self._spawn(self._end_wait(wait, self._adapter))
        await self._adapter.send_event(TickIdleCheck())

    async def _end_wait(self, wait: Wait, adapter: InternalRunAdapter) -> None:
        await asyncio.sleep(max(0.0, wait.due - time.time()))
        await adapter.send_event(wait.tick())

    async def _leave(self, journal: RunJournal) -> None:
        """Leave memory, unless something comes meanwhile."""
        wake_in = journal.waits.seconds_to_next()
        if wake_in is not None and wake_in < _WORTH_LEAVING:
            self._leaving = False  # the end of that wait is about to begin a step
            self.clock.wait_again()
            return
        self._mailbox.hold()
        try:
            self.has_left = await journal.park()
        except Exception as exc:  # noqa: BLE001 - whatever stands in the way ends the run
            self.fail(exc)
        if self.has_left:
            self._stop_waiting()
            return
        self._leaving = False
        await self._mailbox.release()
        if self.clock.is_waiting:
            self.clock.wait_again()

    def _ending(self, handler: WorkflowHandler, result: asyncio.Future[StopEvent]) -> Ending | None:
        """Return how the run ended, None if it is not this instance's any more."""
        known = result.done() and not result.cancelled()
        exc = result.exception() if known else None
        last = self._last_event
        fault = self._fault or (exc if isinstance(exc, FencedOutError | RunLeftError) else None)
        if fault is not None:
            return None if isinstance(fault, FencedOutError | RunLeftError) else Ending.failed(fault)
        # Only the stream tells a run that timed out from a step that raised the error of another run.
        if isinstance(last, WorkflowTimedOutEvent):
            return Ending.timed_out(last, exc)
        if isinstance(last, WorkflowFailedEvent):
            return Ending.failed(exc or last.exception)
        if exc is not None and not isinstance(exc, WorkflowCancelledByUser):
            return Ending.failed(exc)
        stop = result.result() if known and exc is None else last
        if stop is None or isinstance(stop, WorkflowCancelledEvent):
            return Ending.cancelled()
        return Ending.succeeded(stop, handler.ctx)

    def _time_out(self) -> None:
        """The run has worked as long as it may."""
        if self._adapter is not None and self._limits.timeout is not None:
            self._spawn(self._adapter.send_event(TickTimeout(timeout=self._limits.timeout)))

    def _stop(self) -> None:
        """Ask the run to end, also one that has not begun yet."""
        if self._handler is not None:
            self._cancel_handler(self._handler)
        elif self._starting is not None:
            self._starting.cancel()
            self._expect_end()

    def _stop_timers(self) -> None:
        self.clock.stop()
        if self._timer is not None:
            self._timer.cancel()

    def _cancel_handler(self, handler: WorkflowHandler) -> None:
        if self._canceller is None:
            self._canceller = asyncio.create_task(handler.cancel_run(timeout=CANCEL_GRACE))
            self._expect_end()

    def _expect_end(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CANCEL_GRACE, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if not self._give_up.done():
            self._give_up.set_result(None)

    def _abandon(self, handler: WorkflowHandler, result: asyncio.Future[StopEvent]) -> None:
        """Leave a run alone whose steps do not end."""
        logger.warning(
            "%s: steps go on although their run has ended; they ignore their cancellation",
            self._label,
            extra={"action": "abandon_run"},
        )
        self._cancel_handler(handler)
        result.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
