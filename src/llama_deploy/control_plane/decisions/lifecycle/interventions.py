"""What people do with a task: they cancel it, or move it to another version."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from llama_deploy.control_plane.decisions.lifecycle.due_attempts import is_held_back
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason, start_of_run, take_over
from llama_deploy.control_plane.decisions.transitions import (
    Transition,
    cancelled_result,
    finish,
    next_attempt,
)
from llama_deploy.errors import ConflictError, TaskFinishedError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskStatus
from llama_deploy.types.keys import public_id


def cancel(task: TaskRecord, *, at: datetime) -> Transition:
    """A client cancels the task. A running one is asked to stop. Idempotent.

    Raises:
        TaskFinishedError: The task has ended in another way.
    """
    if task.status is TaskStatus.CANCELLED:
        return Transition(task)
    check_open(task)
    if task.status is TaskStatus.RUNNING:
        requested_at = task.cancel_requested_at if task.cancel_requested else at
        asked = task._replace(cancel_requested=True, cancel_requested_at=requested_at)
        return Transition(asked, notify_cancel=True)
    return finish(task, cancelled_result(task), at=at)


def move(task: TaskRecord, version: str) -> Transition:
    """Somebody moves the task to a version, which continues its run. A parked run stays parked.

    Raises:
        TaskFinishedError: The task has ended.
        ConflictError: It is running, it waits for its turn, or nothing of its run is stored.
    """
    _check_movable(task)
    if not task.has_run:
        raise ConflictError(
            f"nothing of the run of task {public_id(task.task_id)} is stored, so it cannot continue with a"
            ' version; move it from "start"'
        )
    # A queued attempt that is delayed stays so.
    is_due = task.status is TaskStatus.QUEUED and not is_held_back(task)
    return Transition(task._replace(pinned_to=version), dispatch=is_due)


def start_again(task: TaskRecord, version: str, *, at: datetime) -> Transition:
    """Somebody moves the task to a version, which begins its run again. Its stream goes on.

    The next attempt is offered all events that were sent to the task. Idempotent until its run is stored.

    Raises:
        TaskFinishedError: The task has ended.
        ConflictError: It is running, or waits for its turn.
    """
    check_open(task)
    if task.pinned_to == version and not task.has_run:
        return Transition(task)
    _check_movable(task)
    task = take_over(task._replace(repeats_from=start_of_run(task), unfinished=None), TakeoverReason.MOVED)
    fresh = task._replace(
        pinned_to=version,
        version=None,
        has_run=False,
        journal_length=0,
        running_seconds=0.0,
        losses=0,
        deaths=0,
        durability=None,
        volatile_reason=None,
    )
    return replace(next_attempt(fresh, at=at), forget_run=task.has_run, restore_inbox=True)


def _check_movable(task: TaskRecord) -> None:
    check_open(task)
    if task.status not in (TaskStatus.QUEUED, TaskStatus.WAITING):
        advice = "cancel it, or wait" if task.status is TaskStatus.RUNNING else "wait for its turn"
        raise ConflictError(
            f"task {public_id(task.task_id)} is {task.status.value}, and only a queued or waiting task can be"
            f" moved: {advice}"
        )


def check_open(task: TaskRecord) -> None:
    """Raise `TaskFinishedError` if the task has ended."""
    if task.status.is_terminal:
        raise TaskFinishedError(
            f"task {public_id(task.task_id)} has ended with the status {task.status.value}",
            task_id=public_id(task.task_id),
            status=task.status.value,
        )
