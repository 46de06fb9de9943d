# Generated from client/aio/task_calls.py by `make sync-client`; do not edit.
"""The calls that tasks are made of: submit one, wait for its end, send it an event."""

from __future__ import annotations

from typing import Final

from llama_deploy.client.deadline import Deadline, answer_timeout
from llama_deploy.client.paths import task_path
from llama_deploy.client.sync.server_api import ANYTHING, ServerApi
from llama_deploy.client.task_results import describe_status, result_of, wait_timed_out
from llama_deploy.errors import OverloadedError, UnavailableError
from llama_deploy.interceptors import SubmitCall, around
from llama_deploy.types import EventDefinition, TaskResult, TaskSubmission, TaskView
from llama_deploy.web.http_exchange import HttpRequest

MAX_WAIT: Final = 30.0
"""Seconds that the control plane is asked to hold a request; half of its limit, because of proxies."""
_EARLY: Final = 0.5
"""A response without a result before this part of the wait is early."""
_PAUSE_WHEN_EARLY: Final = 0.1


def submit(api: ServerApi, submission: TaskSubmission, deadline: Deadline) -> TaskView:
    """Submit a task and return it. The task id in the submission makes retries safe."""
    call = SubmitCall(submission, waits=False)
    with around(api.on_submit, call):
        call.view = view = _post(api, call, deadline)
    return view


def run(api: ServerApi, submission: TaskSubmission, deadline: Deadline) -> TaskResult:
    """Submit a task and return its result: one request if the task is short."""
    call = SubmitCall(submission, waits=True)
    with around(api.on_submit, call):
        accepted = _post(api, call, deadline)
        call.view = view = wait_for_end(api, accepted.task_id, deadline, accepted)
        return result_of(view)


def _post(api: ServerApi, call: SubmitCall, deadline: Deadline) -> TaskView:
    """Submit a task. If the call waits, the response comes when the task ends, or at the deadline."""

    def build() -> HttpRequest:
        seconds = _wait_seconds(api, deadline) if call.waits else 0.0
        return HttpRequest(
            "POST",
            "/tasks",
            params={"wait": seconds} if call.waits else {},
            json=call.submission,
            headers=call.headers,
            timeout=answer_timeout(deadline, seconds),
        )

    return api.call_until(deadline, build, TaskView.model_validate)


def wait_for_end(api: ServerApi, task_id: str, deadline: Deadline, view: TaskView | None = None) -> TaskView:
    """Return the task once it has ended. `view` is what the caller knows about it.

    Raises:
        TaskNotFoundError: The task does not exist.
        TaskTimeoutError: The task did not end before the deadline, or the control plane did not respond.
    """

    def build() -> HttpRequest:
        seconds = _wait_seconds(api, deadline)
        return HttpRequest(
            "GET", task_path(task_id), params={"wait": seconds}, timeout=answer_timeout(deadline, seconds)
        )

    while view is None or view.result is None:
        left = deadline.remaining()
        if view is not None and left <= 0:
            raise wait_timed_out(task_id, deadline, f"it {describe_status(view.status)}")
        try:
            view = api.call_until(deadline, build, TaskView.model_validate)
        except (UnavailableError, OverloadedError) as exc:
            raise wait_timed_out(task_id, deadline, str(exc)) from exc
        if view.result is None and left - deadline.remaining() < _EARLY * min(left, MAX_WAIT):
            # A control plane that shuts down answers all waiting requests at once.
            api.sleep(_PAUSE_WHEN_EARLY)
    return view


def send_event(api: ServerApi, path: str, event: EventDefinition, deadline: Deadline) -> None:
    """Send an event to a task. It is stored when this returns.

    An event with an idempotency key is retried while the control plane does not respond. Without one it is
    sent once, because a retry could deliver it twice.
    """
    if event.idempotency_key is None:
        api.post(path, ANYTHING, json=event)
        return

    def build() -> HttpRequest:
        return HttpRequest("POST", path, json=event, timeout=answer_timeout(deadline))

    api.call_until(deadline, build, ANYTHING)


def _wait_seconds(api: ServerApi, deadline: Deadline) -> float:
    """Return the seconds that the server may wait. During an outage, its end is to be noticed at once."""
    return 0.0 if api.outage.lasts else round(min(deadline.remaining(), MAX_WAIT), 3)
