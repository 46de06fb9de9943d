"""What a service publishes about its tasks in the forms of 0.6: `TaskResult` and `TaskStream`."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, Final

from workflows.events import StopEvent

from llama_deploy.codec import qualified_name
from llama_deploy.codec.plain_json import measured, to_json_value
from llama_deploy.errors import ClosedError, InvalidRequestError, TaskCancelledError, TaskFailedError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.services.worker.attempt import Attempt, processing
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.message_data import parse_data
from llama_deploy.types import TaskFailure, TaskResult, TaskStatus, TaskStream
from llama_deploy.types.instance_protocol import EventPayload

logger = logging.getLogger(__name__)

ENDED: Final = "the task has ended already"
"""Why what follows a result is refused."""
_NOT_OWNED: Final = "this instance does not have the task, or not any more"
_EVENT_TYPE: Final = "Event"
"""The class of a streamed event, which names none: the base class of all events."""


class PublishedResult(TaskResult):
    """Data of a `completed_task` message of a service."""

    attempt: int | None = None
    """The attempt that it is for, as in the `new_task` message. None: the one that the instance owns."""


class PublishedEvent(TaskStream):
    """Data of a `task_stream` message of a service."""

    attempt: int | None = None
    """The attempt that it is for, as in the `new_task` message. None: the one that the instance owns."""


def outcome_of_value(value: object) -> RunOutcome:
    """Return the outcome of a task whose service returned `value`.

    Raises:
        SerializationError: The value cannot be written as JSON.
    """
    return RunOutcome.succeeded(StopEvent(result=value))


def outcome_of_result(published: TaskResult) -> RunOutcome:
    """Return the outcome that a published result describes. Without a value, the value is the text.

    Raises:
        InvalidRequestError: Its status is not terminal.
        SerializationError: The history or the data cannot be written as JSON.
    """
    status, error = published.status, published.error
    if not status.is_terminal:
        raise InvalidRequestError(f"the status of a result must be terminal, not {status.value!r}")
    extras: dict[str, Any] = {
        "history": to_json_value(published.history) or None,
        "data": to_json_value(published.data) or None,
    }
    if status is TaskStatus.SUCCEEDED:
        value, size = measured(published.result if published.value is None else published.value)
        return RunOutcome(
            status,
            result=None if published.result == str(value) else published.result,
            value=value,
            value_type=published.value_type,
            terminal_event=EventPayload(type=StopEvent.__name__, data={}),
            event_value="result",
            size=size + len(published.result) + 256,
            **extras,
        )
    if error is None:
        cls = TaskCancelledError if status is TaskStatus.CANCELLED else TaskFailedError
        error = TaskFailure(type=qualified_name(cls), message=published.result)
    return RunOutcome(status, result=published.result or None, error=error, **extras)


def streamed(published: TaskStream) -> StreamedEvent:
    """Return a published event as it is streamed.

    Raises:
        SerializationError: A field cannot be written as JSON.
    """
    data, size = measured(published.data)
    return StreamedEvent(EventPayload(type=_EVENT_TYPE, data=data), size)


async def report_published(message: QueueMessage, attempts: HeldAttempts[Any]) -> None:
    """End the attempt for which a result was published, or add an event to its stream.

    Returns when the control plane will get it. What is about no attempt of this instance, and what follows a
    result, is logged and not sent.

    Args:
        message: A `completed_task` or `task_stream` message.
        attempts: The attempts of this instance.

    Raises:
        InvalidRequestError: The data is malformed.
        SerializationError: A value cannot be written as JSON.
    """
    if message.action is ActionTypes.COMPLETED_TASK:
        await _end(parse_data(PublishedResult, message), attempts)
    else:
        await _stream(parse_data(PublishedEvent, message), attempts)


async def _end(result: PublishedResult, attempts: HeldAttempts[Any]) -> None:
    attempt = _find(result.task_id, result.attempt, attempts)
    if attempt is None:
        return
    if attempt.answer(outcome_of_result(result)):
        await attempt.wait_answered()
    else:
        log_refused("a published result", task_id=result.task_id, reason=ENDED)


async def _stream(event: PublishedEvent, attempts: HeldAttempts[Any]) -> None:
    attempt = _find(event.task_id, event.attempt, attempts)
    if attempt is None:
        return
    if not attempt.is_answered:
        with suppress(ClosedError):
            await attempt.reports.add(streamed(event))
            return
    log_refused("a published event", task_id=event.task_id, reason=ENDED)


def _find(task_id: str, number: int | None, attempts: HeldAttempts[Any]) -> Attempt | None:
    """Return the attempt that a report is about. None: this instance does not own it; that is logged."""
    current = processing.get()
    if current is not None and current.key.task_id != task_id:
        current = None
    if number is None and current is not None:
        # What an older attempt publishes does not count for a newer one.
        number = current.key.attempt
    attempt: Attempt | None = attempts.of_task(task_id, number)
    if attempt is None:
        has_ended = current is not None and current.is_answered and not current.is_abandoned
        log_refused("what was published", task_id=task_id, reason=ENDED if has_ended else _NOT_OWNED)
    return attempt


def log_refused(what: str, *, task_id: str, reason: str) -> None:
    """Say that something was published in vain."""
    logger.warning(
        "%s for task %s is not sent: %s",
        what,
        task_id,
        reason,
        extra={"action": "report_refused", "task_id": task_id},
    )
