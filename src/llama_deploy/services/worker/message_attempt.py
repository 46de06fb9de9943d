"""An attempt whose task a service answers itself, by processing messages."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, Final

from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.background import end
from llama_deploy.services.run.inbox.run_inbox import EntrySequence
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_guard import StepExitError
from llama_deploy.services.values.payloads import rejection_event
from llama_deploy.services.worker.attempt import Attempt, processing
from llama_deploy.services.worker.published_reports import (
    ENDED,
    log_refused,
    outcome_of_result,
    outcome_of_value,
)
from llama_deploy.types import TaskResult
from llama_deploy.types.instance_protocol import InboxEntry

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""How many events may wait here until the service has processed them; the control plane keeps the rest."""


@dataclass(slots=True, eq=False)
class MessageAttempt(Attempt):
    """Hands the messages of one task to a service, and waits for its answer.

    The answer is what processing a message returns or raises, or a published result; the first one counts.
    Create it in the event loop in which it is executed.
    """

    message: QueueMessage
    """The `new_task` message, with the input."""
    process: Callable[[QueueMessage], Awaitable[Any]]
    """Processes a message. A value other than None is the result of the task."""
    on_seen: Callable[[int], None]
    """Called with the number of the last event up to which all have arrived."""
    sequence: EntrySequence
    """Puts events in order."""
    _events: asyncio.Queue[InboxEntry | None] = field(default_factory=asyncio.Queue, init=False)
    """Events to process; None is the end."""
    _answer: asyncio.Future[RunOutcome | None] = field(init=False)
    _closing: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Begin without an answer."""
        self._answer = asyncio.get_running_loop().create_future()

    def begin_with(self, entries: list[InboxEntry]) -> None:
        """Take the events that were there before the attempt was claimed, in order."""
        for entry in entries:
            self._events.put_nowait(entry)
        self.on_seen(self.sequence.seen)

    async def execute(self) -> RunOutcome | None:
        """Let the service process the task, and wait for its answer. None: there is nothing to report."""
        if not self._answer.done():
            self._start(self._process_task(), name="task")
            self._start(self._process_events(), name="events")
        return await self._answer

    @property
    def is_answered(self) -> bool:
        """Whether there is an outcome, or nothing to report."""
        return self._answer.done()

    def answer(self, outcome: RunOutcome) -> bool:
        """Let the attempt end with an outcome. False: it has one already."""
        return self._end(outcome)

    async def wait_answered(self) -> None:
        """Wait until the answer was published."""
        await self._closing.wait()

    def cancel(self) -> None:
        """Cancel what processes the task, unless there is an answer. Idempotent."""
        self.is_cancelled = True
        if self._end(RunOutcome.cancelled()):
            self._cancel_tasks()

    def abandon(self) -> None:
        """Cancel what processes the task, unless there is an answer, and report nothing. Idempotent."""
        self.is_abandoned = self.is_cancelled = True
        if self._end(None):
            self._cancel_tasks()

    async def deliver(self, entry: InboxEntry) -> None:
        """Let the service process an event, after those before it and unless it was seen before."""
        entries = self.sequence.add(entry, room=MAX_WAITING - self._events.qsize())
        for following in entries:
            self._events.put_nowait(following)
        if entries:
            self.on_seen(self.sequence.seen)

    async def close(self) -> None:
        """Wait until the service has returned from its messages; cancelling this call cancels it."""
        self._closing.set()
        self._events.put_nowait(None)
        try:
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            await end(self._tasks)
            self._tasks.clear()  # their contexts refer to this attempt
            await self.reports.close()

    def _start(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        context = copy_context()
        context.run(processing.set, self)
        self._tasks.append(asyncio.create_task(work, name=f"{name}-{self.key.task_id}", context=context))

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _end(self, outcome: RunOutcome | None) -> bool:
        if self._answer.done():
            return False
        self._answer.set_result(outcome)
        return True

    async def _process_task(self) -> None:
        try:
            await self._process(self.message)
        except Exception as exc:  # noqa: BLE001 - the boundary of the task: what fails here fails the task
            self._settle(RunOutcome.failed(exc))

    async def _process_events(self) -> None:
        """Process the events, one after the other. One that fails is shown in the task's stream."""
        while (entry := await self._events.get()) is not None and not self._answer.done():
            try:
                await self._process(self._event_message(entry))
            except Exception as exc:
                logger.exception(
                    "rejected event %d for task %s",
                    entry.seq,
                    self.key.task_id,
                    extra={"action": "reject_event", "task_id": self.key.task_id},
                )
                with suppress(LlamaDeployError):  # the attempt is about to end
                    await self.reports.add(rejection_event(entry.event, f"{type(exc).__name__}: {exc}"))

    async def _process(self, message: QueueMessage) -> None:
        try:
            value = await self.process(message)
        except asyncio.CancelledError as exc:
            if self._answer.done():
                raise
            raise StepExitError("process_message", exc) from exc
        except Exception:
            raise
        except BaseException as exc:
            # In a task, this would end the whole process.
            raise StepExitError("process_message", exc) from exc
        if isinstance(value, TaskResult):
            self._settle(outcome_of_result(value))
        elif value is not None:
            self._settle(outcome_of_value(value))

    def _settle(self, outcome: RunOutcome) -> None:
        """End the attempt with an outcome; log it if there is one already."""
        if not self._end(outcome) and not self.is_cancelled:
            what = "a result" if outcome.error is None else f"{outcome.error.type}: {outcome.error.message}"
            log_refused(what, task_id=self.key.task_id, reason=ENDED)

    def _event_message(self, entry: InboxEntry) -> QueueMessage:
        """Return the message with which 0.6 sent an event to a service."""
        data = {**self.message.data, "input": entry.event.event_obj_str}
        return QueueMessage(type=self.message.type, action=ActionTypes.SEND_EVENT, data=data)
