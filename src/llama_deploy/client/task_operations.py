"""Operations on tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from llama_deploy.client.operation import Deadline, Operation, Pause, call, persist, segment
from llama_deploy.client.payload_encoding import decode_result
from llama_deploy.errors import (
    InvalidRequestError,
    OverloadedError,
    TaskCancelledError,
    TaskEndedError,
    TaskFailedError,
    TaskTimeoutError,
    UnavailableError,
)
from llama_deploy.types import (
    EventDefinition,
    TaskDefinition,
    TaskFailure,
    TaskResult,
    TaskStatus,
    TaskSubmission,
    TaskView,
)
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.connection_settings import DEFAULT_TIMEOUT
from llama_deploy.web.http_connection import HttpRequest

T = TypeVar("T")

LONGEST_WAIT: Final = 30.0
"""Seconds that the control plane is asked to hold one request; half of what it allows, for proxies' sake."""
_GRACE: Final = 5.0
"""Seconds beyond the deadline in which an answer that is on its way may arrive."""
_EARLY: Final = 0.5
"""The part of a wait before which an answer without a result is unusual."""
_PAUSE_WHEN_EARLY: Final = 0.1

_VIEW: Final = TypeAdapter(TaskView)
_TASK_ID: Final = TypeAdapter(str)
_RESULT: Final = TypeAdapter[TaskResult | None](TaskResult | None)
_DEFINITIONS: Final = TypeAdapter(list[TaskDefinition])
_ANYTHING: Final = TypeAdapter[Any](Any)


class HasId(Protocol):
    """A session of either client."""

    id: str


def id_of(session: HasId | str | None) -> str | None:
    """Return the id of a session that may be given by its id."""
    return session if session is None or isinstance(session, str) else session.id


def describe(
    service_name: str,
    arguments: Mapping[str, Any],
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    max_attempts: int | None = None,
) -> TaskSubmission:
    """Describe a task that is to be accepted; `arguments` are JSON values.

    Raises:
        InvalidRequestError: A name, id or number that cannot be.
    """
    chosen = {} if task_id is None else {"task_id": task_id}
    try:
        return TaskSubmission(
            service_name=service_name,
            arguments=dict(arguments),
            session_id=session_id,
            max_attempts=max_attempts,
            **chosen,
        )
    except ValidationError as exc:
        raise InvalidRequestError(f"no task can have {describe_validation_error(exc)}") from exc


def submit(submission: TaskSubmission, deadline: Deadline, *, wait: bool = False) -> Operation[TaskView]:
    """Have a task accepted; with `wait`, let the answer take until the task ends or the deadline.

    The submission names the task, so it is repeated safely while the control plane does not answer.

    Raises:
        ServiceNotFoundError: Nobody has registered the service.
        SessionNotFoundError: There is no such session.
        SessionBusyError: The session takes one task at a time.
        ConflictError: The id is that of another task, of another service or session, or with other arguments.
        InvalidRequestError: The arguments are not what the service takes, or too large.
        UnavailableError: No answer until the deadline; whether the task was accepted is not known.
    """

    def build() -> HttpRequest:
        seconds = _wait_seconds(deadline) if wait else 0.0
        return HttpRequest(
            "POST",
            "/tasks",
            params={"wait": seconds} if wait else {},
            json=submission,
            timeout=_answer_within(deadline, seconds),
        )

    return (yield from persist(build, _VIEW, deadline))


def run(submission: TaskSubmission, deadline: Deadline) -> Operation[TaskResult]:
    """Have a task accepted and return its result: one request if it is short.

    Raises:
        TaskFailedError, TaskCancelledError: It ended otherwise than by success.
        TaskTimeoutError: It was accepted, but has not ended until the deadline.
        LlamaDeployError: As `submit`.
    """
    view = yield from submit(submission, deadline, wait=True)
    return success((yield from wait_for_end(view.task_id, deadline, view)))


def wait_for_end(task_id: str, deadline: Deadline, view: TaskView | None = None) -> Operation[TaskView]:
    """Return the task once it has ended. `view` is what is known of it.

    Raises:
        TaskNotFoundError: There is no such task.
        TaskTimeoutError: It has not ended until the deadline, or that cannot be learned.
    """

    def build() -> HttpRequest:
        seconds = _wait_seconds(deadline)
        return HttpRequest(
            "GET", _path(task_id), params={"wait": seconds}, timeout=_answer_within(deadline, seconds)
        )

    while view is None or view.result is None:
        left = deadline.remaining()
        if view is not None and left <= 0:
            raise _timeout(task_id, deadline, f"it is {view.status}")
        try:
            view = yield from persist(build, _VIEW, deadline)
        except (UnavailableError, OverloadedError) as exc:
            raise _timeout(task_id, deadline, str(exc)) from exc
        if view.result is None and left - deadline.remaining() < _EARLY * min(left, LONGEST_WAIT):
            # A control plane that is about to stop sends its waiters away at once.
            yield Pause(_PAUSE_WHEN_EARLY)
    return view


def _wait_seconds(deadline: Deadline) -> float:
    return round(min(deadline.remaining(), LONGEST_WAIT), 3)


def _answer_within(deadline: Deadline, seconds: float) -> float:
    return min(seconds + DEFAULT_TIMEOUT, deadline.remaining() + _GRACE)


def _timeout(task_id: str, deadline: Deadline, reason: str) -> TaskTimeoutError:
    return TaskTimeoutError(
        f"task {task_id} has not ended within {deadline.seconds:g} s ({reason}); it goes on",
        task_id=task_id,
        timeout=deadline.seconds,
    )


def success(view: TaskView) -> TaskResult:
    """Return the result of a task that has succeeded.

    Raises:
        TaskFailedError: It failed or timed out.
        TaskCancelledError: It was cancelled.
    """
    result = view.result
    if result is not None and result.status is TaskStatus.SUCCEEDED:
        return result
    failure = (result.error if result is not None else None) or TaskFailure(type="", message="")
    cls: type[TaskEndedError] = TaskCancelledError if view.status is TaskStatus.CANCELLED else TaskFailedError
    reason = ": ".join(part for part in (failure.type, failure.message) if part)
    raise cls(
        f"task {view.task_id} of service {view.service_name} {how_it_stands(view.status)}"
        f"{': ' + reason if reason else ''}",
        task_id=view.task_id,
        status=str(view.status),
        error_type=failure.type or None,
        error_message=failure.message or None,
        traceback=failure.traceback,
    )


_ENDS: Final = {
    TaskStatus.SUCCEEDED: "succeeded",
    TaskStatus.FAILED: "failed",
    TaskStatus.TIMED_OUT: "exceeded its time limit",
    TaskStatus.CANCELLED: "was cancelled",
}


def how_it_stands(status: TaskStatus) -> str:
    """Return a status as what is said of a task, such as `was cancelled`."""
    return _ENDS.get(status, "has not ended")


@overload
def value_of(result: TaskResult, as_type: None) -> Any: ...


@overload
def value_of(result: TaskResult, as_type: type[T]) -> T: ...


def value_of(result: TaskResult, as_type: type[T] | None) -> Any:
    """Return the value of a result, as JSON or as `as_type`.

    Raises:
        SerializationError: The value is not of that type.
    """
    if as_type is None:
        return result.value
    return decode_result(result.value, as_type, task_id=result.task_id)


def read(task_id: str) -> Operation[TaskView]:
    """Return the task as it stands.

    Raises:
        TaskNotFoundError: There is no such task.
    """
    return call(HttpRequest("GET", _path(task_id)), _VIEW)


def cancel(task_id: str) -> Operation[TaskView]:
    """Ask for the task's end and return it as it then stands. A task that has ended stays as it is.

    Raises:
        TaskNotFoundError: There is no such task.
    """
    return call(HttpRequest("POST", _path(task_id) + "/cancel"), _VIEW)


def send(task_id: str, event: EventDefinition, deadline: Deadline) -> Operation[Any]:
    """Send an event to the task. It is stored when this returns.

    One with an idempotency key is repeated safely while the control plane does not answer. Another one is
    sent once, because it could arrive twice.

    Raises:
        TaskNotFoundError: There is no such task.
        TaskFinishedError: The task has ended.
        InvalidRequestError: The workflow does not take such an event.
        UnavailableError: No answer; whether the event was stored is not known.
    """
    return _send(_path(task_id) + "/events", event, deadline)


def _send(path: str, event: EventDefinition, deadline: Deadline) -> Operation[Any]:
    if event.idempotency_key is None:
        return call(HttpRequest("POST", path, json=event), _ANYTHING)
    return persist(
        lambda: HttpRequest("POST", path, json=event, timeout=_answer_within(deadline, 0)),
        _ANYTHING,
        deadline,
    )


# -- tasks by their session, with the routes of 0.6


def create_in_session(session_id: str, definition: TaskDefinition, deadline: Deadline) -> Operation[str]:
    """Have a task accepted and return its id; repeated safely like `submit`.

    Raises:
        LlamaDeployError: As `submit`.
    """
    path = f"/sessions/{segment(session_id)}/tasks"
    return persist(
        lambda: HttpRequest("POST", path, json=definition, timeout=_answer_within(deadline, 0)),
        _TASK_ID,
        deadline,
    )


def list_in_session(session_id: str) -> Operation[list[TaskDefinition]]:
    """Return the session's tasks, in the order in which they were accepted.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    return call(HttpRequest("GET", f"/sessions/{segment(session_id)}/tasks"), _DEFINITIONS)


def result_in_session(session_id: str, task_id: str) -> Operation[TaskResult | None]:
    """Return how the task ended, None while it has not.

    Raises:
        TaskNotFoundError: There is no such task in the session.
    """
    return call(HttpRequest("GET", f"{_path_in_session(session_id, task_id)}/result"), _RESULT)


def send_in_session(
    session_id: str, task_id: str, event: EventDefinition, deadline: Deadline
) -> Operation[Any]:
    """Send an event to a task of the session, like `send`."""
    return _send(f"{_path_in_session(session_id, task_id)}/send_event", event, deadline)


def _path(task_id: str) -> str:
    return f"/tasks/{segment(task_id)}"


def _path_in_session(session_id: str, task_id: str) -> str:
    return f"/sessions/{segment(session_id)}/tasks/{segment(task_id)}"
