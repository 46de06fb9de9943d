"""From a finished task to a value or an error."""

from __future__ import annotations

from typing import Any, Final, cast

from typing_extensions import TypeVar

from llama_deploy.client.deadline import Deadline
from llama_deploy.client.payload_encoding import decode_result
from llama_deploy.errors import TaskCancelledError, TaskEndedError, TaskFailedError, TaskTimeoutError
from llama_deploy.types import TaskFailure, TaskResult, TaskStatus, TaskView

T = TypeVar("T", default=Any)

_ENDINGS: Final = {
    TaskStatus.SUCCEEDED: "succeeded",
    TaskStatus.FAILED: "failed",
    TaskStatus.TIMED_OUT: "exceeded its time limit",
    TaskStatus.CANCELLED: "was cancelled",
}


def describe_status(status: TaskStatus) -> str:
    """Return the words that follow a task's name in a sentence, such as `was cancelled`."""
    return _ENDINGS.get(status, f"is {status}")


def result_of(view: TaskView) -> TaskResult:
    """Return the result of a task that has succeeded.

    Raises:
        TaskFailedError: The task failed or timed out.
        TaskCancelledError: The task was cancelled.
    """
    result = view.result
    if result is not None and result.status is TaskStatus.SUCCEEDED:
        return result
    failure = (result.error if result is not None else None) or TaskFailure(type="", message="")
    cls: type[TaskEndedError] = TaskCancelledError if view.status is TaskStatus.CANCELLED else TaskFailedError
    reason = ": ".join(part for part in (failure.type, failure.message) if part)
    raise cls(
        f"task {view.task_id} of service {view.service_name} {describe_status(view.status)}"
        f"{': ' + reason if reason else ''}",
        task_id=view.task_id,
        status=str(view.status),
        error_type=failure.type or None,
        error_message=failure.message or None,
        traceback=failure.traceback,
    )


def value_of(result: TaskResult, as_type: type[T] | None) -> T:
    """Return the value of a result, as JSON or as `as_type`.

    Raises:
        SerializationError: The value does not match `as_type`.
    """
    if as_type is None:
        return cast("T", result.value)
    return decode_result(result.value, as_type, task_id=result.task_id)


def wait_timed_out(task_id: str, deadline: Deadline, reason: str) -> TaskTimeoutError:
    """Return the error for a task that did not finish before the deadline."""
    return TaskTimeoutError(
        f"task {task_id} did not finish within {deadline.seconds:g} s ({reason}); it is still running, and "
        "you can wait for it again",
        task_id=task_id,
        timeout=deadline.seconds,
    )
