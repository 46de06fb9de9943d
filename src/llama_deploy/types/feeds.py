"""Feeds of task changes on the wire."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from llama_deploy.types.tasks import TaskEvent, TaskStatus


class TaskChange(BaseModel):
    """A task as it is since its last change of status."""

    task_id: str
    session_id: str
    service_name: str
    status: TaskStatus
    changed_at: datetime
    """Since when it has this status."""
    attempt: int
    """The current attempt, or the last one, counted from 1."""
    instance_id: str | None = None
    """The instance that runs it."""
    created_at: datetime
    finished_at: datetime | None = None
    tags: list[str] = []


class FeedEvent(TaskEvent):
    """An event of a task, in a feed."""

    task_id: str


class FeedItem(BaseModel):
    """One line of a feed. Exactly one of the fields is set."""

    task: TaskChange | None = None
    """A task was submitted, or its status has changed."""
    deleted: str | None = None
    """The id of a task that was deleted with its session."""
    event: FeedEvent | None = None
    """An event of a task, with `stream=true`."""
    cursor: str | None = None
    """Everything up to here was told. Resume with it as `after`."""
