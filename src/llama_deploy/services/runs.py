"""One run of a workflow: started, streamed, cancelled, and how it ended."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import llama_index_instrumentation
import workflows
from workflows import Context
from workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from workflows.events import (
    Event,
    InternalDispatchEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from workflows.handler import WorkflowHandler

from llama_deploy.errors import LlamaDeployError, TaskCancelledError
from llama_deploy.services.arguments import RunCall
from llama_deploy.services.guard import StepExitError, on_wait
from llama_deploy.services.mailbox import Mailbox
from llama_deploy.services.payloads import (
    StreamedEvent,
    qualified_name,
    streamed_event,
    to_json_value,
    value_type_of,
)
from llama_deploy.types import TaskFailure, TaskStatus
from llama_deploy.types.attempts import EventPayload

logger = logging.getLogger(__name__)

CANCEL_GRACE: Final = 5.0
"""Seconds that steps may take to end after their run was cancelled or has ended; then they are left alone."""
_TRACEBACK_LINES: Final = 20
_MACHINERY: Final = tuple(
    os.path.dirname(file) + os.sep  # noqa: PTH120 - the form that frames have
    for file in (inspect.getfile(workflows), inspect.getfile(llama_index_instrumentation), __file__)
)
"""Folders whose frames are in the traceback of every step."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    status: TaskStatus
    result: str = ""
    value: Any = None
    value_type: str | None = None
    terminal_event: EventPayload | None = None
    error: TaskFailure | None = None
    cause: BaseException | None = None
    """What the workflow raised."""
    ctx: Context | None = None
    """The context of a run that succeeded, which holds the workflow's state."""

    @property
    def size(self) -> int:
        """About how many characters the ending takes."""
        return 2 * len(self.result) + 256

    @classmethod
    def failed(cls, cause: BaseException) -> Ending:
        """The run ended with an exception."""
        return cls(TaskStatus.FAILED, error=describe_failure(cause), cause=cause)

    @classmethod
    def timed_out(cls, event: WorkflowTimedOutEvent, cause: BaseException | None) -> Ending:
        """The run exceeded the workflow's own time limit."""
        active = ", ".join(event.active_steps) or "none"
        message = f"timed out after {event.timeout} seconds; active steps: {active}"
        error = TaskFailure(type=qualified_name(WorkflowTimeoutError), message=str(cause or message))
        return cls(TaskStatus.TIMED_OUT, error=error, cause=cause or WorkflowTimeoutError(message))

    @classmethod
    def cancelled(cls) -> Ending:
        """The run was cancelled."""
        error = TaskFailure(type=qualified_name(TaskCancelledError), message="the task was cancelled")
        return cls(TaskStatus.CANCELLED, error=error)

    @classmethod
    def succeeded(cls, event: StopEvent, ctx: Context) -> Ending:
        """The run ended with the workflow's stop event.

        Raises:
            SerializationError: The result cannot be carried as JSON.
        """
        name = type(event).__name__
        plain = type(event) is StopEvent
        result: object = event.result if plain else event
        value = to_json_value(result)
        data = {**to_json_value(dict(event.items())), "result": value} if plain else value
        return cls(
            TaskStatus.SUCCEEDED,
            # The library shows a stop event of the workflow's own by a field that it need not have.
            result=str(result) if plain else json.dumps(value),
            value=value,
            value_type=value_type_of(result),
            terminal_event=EventPayload(type=name, data=data),
            ctx=ctx,
        )


def describe_failure(exc: BaseException) -> TaskFailure:
    """Return what clients learn of an exception: its class, its text and the end of its traceback.

    The frames of the workflow library and of this package are left out, as they are the same for all.
    """
    shown = exc.raised if isinstance(exc, StepExitError) else exc
    trace = traceback.TracebackException.from_exception(exc)
    own = [frame for frame in trace.stack if not frame.filename.startswith(_MACHINERY)]
    trace.stack = traceback.StackSummary.from_list(own or trace.stack)
    lines = "".join(trace.format()).splitlines()
    return TaskFailure(
        type=qualified_name(type(shown)),
        message=str(exc),
        traceback="\n".join(lines[-_TRACEBACK_LINES:]),
    )


class WorkflowRun:
    """One run, from its arguments to its ending.

    Args:
        call: The call, its arguments checked.
        ctx: Carries the session's state. None: there is none.
        mailbox: The events that clients send.
        on_event: Takes each event that the workflow streams, in order.
        label: Names the run in the log.
    """

    def __init__(
        self,
        *,
        call: RunCall,
        ctx: Context | None,
        mailbox: Mailbox,
        on_event: Callable[[StreamedEvent], Awaitable[None]],
        label: str,
    ) -> None:
        self._call = call
        self._ctx = ctx
        self._mailbox = mailbox
        self._on_event = on_event
        self._label = label
        self._handler: WorkflowHandler | None = None
        self._cancel_requested = False
        self._canceller: asyncio.Task[None] | None = None
        self._last_event: StopEvent | None = None
        self._fault: Exception | None = None
        self._read = 0
        self._timer: asyncio.TimerHandle | None = None
        self._give_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Ask the run to end; `execute` returns within `CANCEL_GRACE` seconds. Idempotent."""
        if self._cancel_requested:
            return
        self._cancel_requested = True
        if self._handler is not None:
            self._cancel_handler(self._handler)

    async def deliver(self) -> None:
        """Hand on the events that have come into the mailbox."""
        await self._mailbox.deliver()

    async def execute(self) -> Ending:
        """Run the workflow to its end. Whatever it raises becomes the ending.

        Cancelling this call cancels the run.
        """
        on_wait.set(self._mailbox.note_wait)
        try:
            self._handler = await self._call.start(self._ctx)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - the workflow's own code, and the boundary of the task
            return Ending.failed(exc if isinstance(exc, Exception) else StepExitError("run", exc))
        try:
            return await self._finish(self._handler)
        except Exception as exc:  # noqa: BLE001 - as above, such as the code of the result's own class
            return Ending.failed(exc)

    async def _finish(self, handler: WorkflowHandler) -> Ending:
        result: asyncio.Future[StopEvent] = asyncio.ensure_future(handler.stop_event_result())
        reader = asyncio.create_task(self._read_stream(handler))
        try:
            if self._cancel_requested:
                self._cancel_handler(handler)
            await self._mailbox.open(handler.send_event)
            either: set[asyncio.Future[Any]] = {result, self._give_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            await self._await_reader(reader)
            return self._ending(handler, result)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if not result.done():
                self._abandon(handler, result)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_stream(self, handler: WorkflowHandler) -> None:
        """Hand the run's events on, until its last one."""
        async for event in handler.stream_events(expose_internal=True):
            self._read += 1
            if isinstance(event, InternalDispatchEvent):
                await self._mailbox.observe(event)
            elif isinstance(event, StopEvent):
                self._last_event = event
                # A step that ignores its cancellation holds back the result, but not the ending.
                self._expect_end()
            elif self._fault is None:
                await self._hand_on(event, handler)

    async def _hand_on(self, event: Event, handler: WorkflowHandler) -> None:
        try:
            await self._on_event(streamed_event(event))
        except LlamaDeployError as exc:
            self._fault = exc
            self._cancel_handler(handler)

    async def _await_reader(self, reader: asyncio.Task[None]) -> None:
        """Wait for the events before the end; not for ever, if the library broke its stream off."""
        read = -1
        while not reader.done() and read != self._read:
            read = self._read
            await asyncio.wait({reader}, timeout=CANCEL_GRACE)
        if reader.done() and not reader.cancelled() and (exc := reader.exception()) is not None:
            fault = exc if isinstance(exc, Exception) else StepExitError("stream", exc)
            self._fault = self._fault or fault

    def _ending(self, handler: WorkflowHandler, result: asyncio.Future[StopEvent]) -> Ending:
        known = result.done() and not result.cancelled()
        exc = result.exception() if known else None
        last = self._last_event
        if self._fault is not None:
            return Ending.failed(self._fault)
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
