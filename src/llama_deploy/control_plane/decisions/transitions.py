"""What an event makes of a task, and the changes of a task that several events make. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_deploy.control_plane.decisions.attempt_history import with_past_attempt
from llama_deploy.errors import LlamaDeployError, TaskCancelledError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import EventPayload, JournalWrite
from llama_deploy.types.questions import WaitReport
from llama_deploy.types.step_history import EndedSteps

NO_OWNER: Final = {"instance_id": None, "token": None, "claimed_at": None}
"""The fields of a task that no instance runs."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event makes of a task."""

    task: TaskRecord
    events: Sequence[EventPayload] = ()
    """To be appended to the stream. If the task has ended, the last one is the terminal event."""
    dispatch: bool = False
    """Publish the attempt."""
    notify_cancel: bool = False
    """Tell the instance to stop the attempt."""
    journal: JournalWrite | None = None
    """To be stored in the run's journal."""
    forget_run: bool = False
    """Delete what is stored of the run."""
    restore_inbox: bool = False
    """Offer the consumed entries of the inbox to the next attempt."""
    drop_inbox: bool = False
    """Offer no entry of the inbox to later attempts."""
    waits: WaitReport | None = None
    """What the run waits for, to be stored."""
    route: bool = False
    """Ask the orchestrator where the task goes."""

    @property
    def ended(self) -> bool:
        """Whether the task has reached its end with this transition."""
        return self.task.status.is_terminal


def moved(task: TaskRecord, status: TaskStatus, *, at: datetime, **changes: Any) -> TaskRecord:
    """Return the task in a status: the one place where the status of a task changes, and its time with it."""
    since = task.status_changed_at if status is task.status else at
    return task._replace(status=status, status_changed_at=since, **changes)


def first_attempt(task: TaskRecord, *, at: datetime) -> Transition:
    """The task is sent to its service: `pending` → `queued`."""
    return Transition(moved(task, TaskStatus.QUEUED, at=at, dispatches=1), dispatch=True)


def next_attempt(task: TaskRecord, *, at: datetime) -> Transition:
    """The attempt is over and the task is not: its next attempt is `queued`, without an owner."""
    task = with_past_attempt(task, at=at)
    changes = {
        "attempt": task.attempt + 1,
        "attempt_events": 0,
        "dispatches": 1,
        "wake_at": None,
        "waiting_since": None,
        "wait_reports": None if task.wait_reports is None else 0,
    }
    return Transition(moved(task, TaskStatus.QUEUED, at=at, **NO_OWNER, **changes), dispatch=True)


def failure_of(error: type[LlamaDeployError], message: str) -> TaskFailure:
    """Return the failure that an error of this class is, as a client reads it."""
    return TaskFailure(type=f"{error.__module__}.{error.__qualname__}", message=message)


def cancelled_result(task: TaskRecord) -> TaskResult:
    """Return the result of a task that was cancelled."""
    failure = failure_of(TaskCancelledError, "the task was cancelled")
    return failed_result(task, failure, status=TaskStatus.CANCELLED)


def failed_result(
    task: TaskRecord, failure: TaskFailure, *, status: TaskStatus = TaskStatus.FAILED
) -> TaskResult:
    """Return the result of a task that has failed; `failure` says why."""
    return TaskResult(
        task_id=task.task_id,
        result=failure.message,
        status=status,
        error=failure,
        attempts=task.attempt,
    )


def finish(
    task: TaskRecord,
    result: TaskResult,
    *,
    at: datetime,
    events: Sequence[EventPayload] = (),
    stop_event: EventPayload | None = None,
    steps: EndedSteps | None = None,
    keeps_journal: bool = False,
) -> Transition:
    """The task ends: it gets the terminal status of its result.

    The journal of a task that did not succeed is kept, so that it can be retried from one of its steps.

    Args:
        task: The task.
        result: Its result.
        at: The present time.
        events: The last events before the terminal one.
        stop_event: The terminal event. None: one that tells the status and the error.
        steps: The steps that have ended since the last journal write. The row of the task is written anyway.
        keeps_journal: Whether the journal is kept if it has succeeded.
    """
    is_kept = task.has_run and task.routing is None
    is_kept = is_kept and (keeps_journal or result.status is not TaskStatus.SUCCEEDED)
    ended = moved(
        task,
        result.status,
        at=at,
        token=None,
        finished_at=at,
        wake_at=None,
        waiting_since=None,
        stream_length=task.stream_length + 1,
        has_run=is_kept,
        journal_length=task.journal_length if is_kept else 0,
        result=result.model_dump_json(),
        routing=None,
        last_steps=task.last_steps if steps is None else steps.model_dump_json(),
    )
    terminal = stop_event or _terminal_event(result)
    return Transition(ended, [*events, terminal], forget_run=task.has_run and not is_kept)


def _terminal_event(result: TaskResult) -> EventPayload:
    """Return the last event of a stream whose workflow did not write one."""
    data = {"status": result.status.value, "error": result.error.model_dump() if result.error else None}
    return EventPayload(type="TaskEnded", data=data)
