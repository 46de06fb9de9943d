"""What retention reads and deletes: its rows, and the repository that has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from llama_deploy.types import TaskStatus


class EndedTask(NamedTuple):
    """What retention knows of a task that has ended."""

    task_id: str
    session_id: str
    service_name: str
    status: TaskStatus
    ended_at: datetime
    position: int
    """Grows in the order in which tasks were accepted."""
    created_at: datetime
    stream_length: int
    parent_task_id: str | None

    @property
    def place(self) -> Place:
        """Where it stands among the ended tasks of its status."""
        return Place(self.ended_at, self.position)


class Place(NamedTuple):
    """A place in the order in which tasks have ended."""

    ended_at: datetime
    position: int


class EndedFilter(NamedTuple):
    """Which ended tasks are meant. None or empty: any."""

    statuses: tuple[TaskStatus, ...] = ()
    service_name: str | None = None
    session_id: str | None = None


class EndedCount(NamedTuple):
    """Some ended tasks of a service, counted."""

    service_name: str
    status: TaskStatus
    task_count: int
    oldest: datetime
    """When the first of them ended."""


class RowsOfTask(NamedTuple):
    """How much is stored of a task."""

    rows: int
    """How many rows it has besides its own."""
    bytes: int
    """About how many bytes all of them take."""


class RemovedTask(NamedTuple):
    """What is left of a task that was removed, so that it cannot run again."""

    task_id: str
    session_id: str
    digest: str
    """Of the service and the run arguments; see `retention_rules.digest_of`."""
    removed_at: datetime
    has_rest: bool = False
    """Whether rows of it are still to be deleted."""


class RetentionProgress(NamedTuple):
    """How far the ended tasks were looked at. Its lock says who removes tasks at the moment."""

    name: str
    """Of the policy, so that a changed policy begins again."""
    cursors: str
    """A JSON object: by pass, the `Place` after which it goes on."""
    begun_at: datetime
    """When the passes began at the oldest task."""
    changed_at: datetime


class RetentionRepository(ABC):
    """Ended tasks, and what is left of removed ones. Everything is read and deleted in bounded amounts."""

    @abstractmethod
    def ended(
        self, status: TaskStatus, *, before: datetime, after: Place | None = None, limit: int = 500
    ) -> list[EndedTask]:
        """Return the tasks with a terminal status that ended before a time, those first that ended first.

        Args:
            status: The status.
            before: The time.
            after: Only tasks that follow this place. None: from the first.
            limit: The most tasks to return.
        """

    @abstractmethod
    def newest(self, which: EndedFilter, *, count: int) -> datetime | None:
        """Return when the task ended that is number `count` of the newest ones. None: there are fewer."""

    @abstractmethod
    def counts(self, which: EndedFilter, *, before: datetime) -> list[EndedCount]:
        """Count the tasks that ended before a time, by service and status."""

    @abstractmethod
    def still_ended(self, task_ids: Collection[str]) -> set[str]:
        """Return those of the tasks that exist, have ended, and whose parent has ended or does not exist."""

    @abstractmethod
    def inputs(self, task_ids: Collection[str]) -> dict[str, str]:
        """Return the run arguments of tasks, as JSON."""

    @abstractmethod
    def total_size(self, task_ids: Collection[str]) -> RowsOfTask:
        """Return how much is stored of tasks together, in all tables that have their key."""

    @abstractmethod
    def sizes(self, task_ids: Collection[str]) -> dict[str, RowsOfTask]:
        """Return how much is stored of tasks, in all tables that have their key."""

    @abstractmethod
    def event_sizes(self, task_ids: Collection[str]) -> dict[str, RowsOfTask]:
        """Return how long the streams of tasks are; those without events are left out."""

    @abstractmethod
    def remove(self, tasks: Sequence[RemovedTask]) -> None:
        """Delete tasks, and remember what is left of them, in place of what was left before.

        Of those without `has_rest`, the rows of all tables that have their key are deleted too.
        """

    @abstractmethod
    def delete_rest(self, task_id: str, *, max_rows: int, max_bytes: int) -> bool:
        """Delete some rows of a removed task; return whether that were the last ones."""

    @abstractmethod
    def with_rest(self, *, limit: int) -> list[str]:
        """Return removed tasks of which rows are still to be deleted."""

    @abstractmethod
    def trim_events(self, lasts: Mapping[str, int]) -> None:
        """Delete the events of each task before a position."""

    @abstractmethod
    def trim_some_events(self, task_id: str, *, last: int, max_rows: int, max_bytes: int) -> bool:
        """Delete some of the first events of a task, all before `last`; return whether those were all."""

    @abstractmethod
    def removed(self, task_ids: Collection[str]) -> dict[str, RemovedTask]:
        """Return what is left of those of the tasks that were removed."""

    @abstractmethod
    def has_removed(self) -> bool:
        """Whether anything is left of any removed task."""

    @abstractmethod
    def forget_removed(self, *, before: datetime, limit: int) -> int:
        """Delete what is left of tasks that were removed before a time; return how many there were."""

    @abstractmethod
    def untouched_sessions(self, session_ids: Collection[str]) -> dict[str, datetime]:
        """Return when those of the sessions were created whose state was never written."""

    @abstractmethod
    def session_page(self, *, after: str, limit: int) -> list[tuple[str, datetime]]:
        """Return the sessions whose ids follow `after`, ordered by id, and when their states were written."""

    @abstractmethod
    def delete_empty_sessions(self, session_ids: Collection[str]) -> set[str]:
        """Delete those of the sessions that do not have tasks, and return which."""

    @abstractmethod
    def take_progress(self, name: str) -> RetentionProgress | None:
        """Return the progress of a policy, and lock it until the transaction ends.

        None: there is none yet, or another transaction has locked it.
        """

    @abstractmethod
    def progress(self, name: str) -> RetentionProgress | None:
        """Return the progress of a policy without locking it."""

    @abstractmethod
    def put_progress(self, progress: RetentionProgress) -> None:
        """Insert or overwrite the progress of a policy."""

    @abstractmethod
    def forget_progress(self, *, before: datetime) -> None:
        """Delete the progress of policies that was last written before a time."""
