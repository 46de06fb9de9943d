"""Attempts that are due: they are published, claimed by an instance, or rejected by the queue."""

from __future__ import annotations

from datetime import datetime

from llama_deploy.control_plane.decisions.transitions import (
    Transition,
    failed_result,
    failure_of,
    finish,
    moved,
    next_attempt,
)
from llama_deploy.errors import FencedOutError, LlamaDeployError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.keys import public_id


def claim(
    task: TaskRecord,
    *,
    instance_id: str,
    attempt: int,
    token: str,
    at: datetime,
    durability: Durability | None = None,
    version: str | None = None,
) -> Transition:
    """An instance asks to own an attempt: `queued` → `running`.

    Asking again for an attempt that the instance owns is granted again with the same token: its answer
    may have been lost.

    Raises:
        FencedOutError: Another attempt is due, or another instance owns this one, or the task has ended.
    """
    if task.status is TaskStatus.RUNNING and (task.attempt, task.instance_id) == (attempt, instance_id):
        return Transition(task._replace(claimed_at=at))
    if task.status is not TaskStatus.QUEUED or task.attempt != attempt:
        raise FencedOutError(
            f"attempt {attempt} of task {public_id(task.task_id)} cannot be claimed: the task is"
            f" {task.status.value} in attempt {task.attempt}",
            task_id=task.task_id,
            attempt=attempt,
        )
    claimed = moved(
        task,
        TaskStatus.RUNNING,
        at=at,
        instance_id=instance_id,
        token=token,
        claimed_at=at,
        started_at=task.started_at or at,
        attempt_events=0,
        repeats_from=task.stream_length,
        unfinished=None,
        durability=task.durability if task.durability is Durability.VOLATILE else durability,
        version=version,
    )
    return Transition(claimed)


def dispatch_again(task: TaskRecord) -> Transition:
    """The attempt was not claimed for long, or was delayed: it is published (again)."""
    if task.status is not TaskStatus.QUEUED:
        return Transition(task)
    return Transition(task._replace(dispatches=task.dispatches + 1), dispatch=True)


def is_held_back(task: TaskRecord) -> bool:
    """Whether the task's attempt is delayed until its `redispatch_at`, and was not published yet."""
    return task.status is TaskStatus.QUEUED and not task.dispatches


def refuse(task: TaskRecord, *, attempt: int, error: LlamaDeployError, at: datetime) -> Transition:
    """The queue rejects the attempt's message permanently: `queued` → `failed`."""
    if task.status is not TaskStatus.QUEUED or task.attempt != attempt:
        return Transition(task)
    failure = failure_of(type(error), f"the task cannot be sent to its service: {error}")
    return finish(task, failed_result(task, failure), at=at)


def wake(task: TaskRecord, *, at: datetime) -> Transition:
    """An event or a timer concerns a run: if it is parked, its next attempt is due."""
    if task.status is not TaskStatus.WAITING:
        # What has come may let a run continue that waits in memory. If not, its instance says so.
        if task.waiting_since is not None:
            task = task._replace(waiting_since=None, status_changed_at=at)
        return Transition(task)
    return next_attempt(task, at=at)
