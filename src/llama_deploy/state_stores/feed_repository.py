"""What feeds of task changes read of the tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple, Self

from llama_deploy.state_stores.records import TaskRecord, shown_status
from llama_deploy.types import TaskStatus


class TaskChangeRecord(NamedTuple):
    """The fields of a `TaskRecord` that a feed tells, without its input and its result."""

    task_id: str
    session_id: str
    service_name: str
    routed_to: str | None
    status: TaskStatus
    status_changed_at: datetime
    attempt: int
    instance_id: str | None
    created_at: datetime
    finished_at: datetime | None
    tags: str
    stream_length: int
    waiting_since: datetime | None
    subject: str | None = None

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return what is told of a task."""
        return cls._make(getattr(task, name) for name in cls._fields)

    @property
    def shown_status(self) -> TaskStatus:
        """See `TaskRecord`."""
        return shown_status(self.status, self.waiting_since)

    @property
    def target(self) -> str:
        """See `TaskRecord`."""
        return self.service_name if self.routed_to is None else self.routed_to


class FeedRepository(ABC):
    """Tasks, as feeds read them."""

    @abstractmethod
    def load(self, task_ids: Collection[str]) -> dict[str, TaskChangeRecord]:
        """Return the tasks by id."""

    @abstractmethod
    def changed_since(
        self, status: TaskStatus, since: datetime, *, after: str = "", limit: int = 1000
    ) -> list[TaskChangeRecord]:
        """Return tasks with a status that have it since `since` or later, by that time, then by id.

        Args:
            status: The status.
            since: Of tasks that have it since exactly then, only those whose id is greater than `after`.
            after: The id of the last task of the page before, with its time as `since`.
            limit: The most tasks to return.
        """
