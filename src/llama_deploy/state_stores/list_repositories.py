"""What a state store lists and counts, and the history of the steps of a task.

Lists have pages of bounded cost: no method reads more than a fixed number of rows, however many tasks the
store has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from llama_deploy.state_stores.records import StepsRecord
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.owners import Owner

MAX_SCAN: Final = 2000
"""How many tasks are looked at for one page, if an index answers only a part of its conditions."""


class ListKey(NamedTuple):
    """By what tasks are listed."""

    created_at: datetime
    position: int
    """Distinguishes tasks that were accepted at the same time, in the order of their insertion."""


class ListedTask(NamedTuple):
    """What a list shows of a task: the fields of its `TaskRecord` that are small."""

    created_at: datetime
    position: int
    task_id: str
    session_id: str
    service_name: str
    status: TaskStatus
    """`TaskRecord.shown_status`."""
    status_changed_at: datetime
    parent_task_id: str | None
    tags: str
    attempt: int
    instance_id: str | None
    redispatch_at: datetime | None
    wake_at: datetime | None
    finished_at: datetime | None
    durability: Durability | None
    volatile_reason: str | None
    routed_to: str | None
    version: str | None
    started_at: datetime | None
    waiting_since: datetime | None
    progress: str | None
    retry_of: str | None
    failed_result: str | None
    """The `TaskResult` of a task that did not succeed, as JSON. None if it is large."""

    @property
    def target(self) -> str:
        """As `TaskRecord.target`."""
        return self.service_name if self.routed_to is None else self.routed_to


@dataclass(frozen=True, slots=True)
class TaskConditions:
    """Which tasks are listed: all conditions have to hold."""

    statuses: frozenset[TaskStatus] = frozenset()
    """Empty: with any status."""
    service_name: str | None = None
    """`TaskRecord.service_name`."""
    session_id: str | None = None
    parent_task_id: str | None = None
    tags: Sequence[str] = ()
    """A task has all of them. Each is named once."""
    created_from: datetime | None = None
    """Created at this time or later."""
    created_before: datetime | None = None
    prefix: str | None = None
    """With what the id begins. Only for `TaskListRepository.page_by_id`."""
    owner: Owner | None = None
    """To whom they belong. None: to anybody. A session, a parent and a prefix name the tenant, too."""


class TaskPageRows(NamedTuple):
    """The tasks of a page."""

    tasks: list[ListedTask]
    last: ListKey | None
    """After which key the next page begins; that of a task which was looked at, but need not be in the page.
    None: there are no more."""


class TaskPageRowsById(NamedTuple):
    """The tasks of a page, ordered by their ids."""

    tasks: list[ListedTask]
    last: str | None
    """After which id the next page begins. None: there are no more."""


class TaskListRepository(ABC):
    """Lists and counts of tasks."""

    @abstractmethod
    def page(
        self,
        conditions: TaskConditions,
        *,
        newest_first: bool = True,
        after: ListKey | None = None,
        limit: int = 100,
    ) -> TaskPageRows:
        """Return tasks by the time of their creation.

        Args:
            conditions: Which tasks.
            newest_first: Or the oldest.
            after: Only tasks that follow this key in the order.
            limit: The most tasks to return. There may be fewer, or none, although more follow: after
                `MAX_SCAN` tasks that do not fulfil all conditions, a page ends.
        """

    @abstractmethod
    def page_by_id(
        self, conditions: TaskConditions, *, after: str = "", limit: int = 100
    ) -> TaskPageRowsById:
        """Return tasks by their ids, in the order of their characters.

        Args:
            conditions: Which tasks.
            after: Only tasks whose id is greater.
            limit: As for `page`.
        """

    @abstractmethod
    def counts(self, owner: Owner | None = None) -> Mapping[tuple[str, TaskStatus], int]:
        """Return how many tasks there are, by `TaskRecord.service_name` and status; no zeros.

        Ended tasks are not read. Each open task is looked at: of a tenant but the default one, only its own.

        Args:
            owner: To whom they belong. None: to anybody.
        """


class StepsRepository(ABC):
    """The steps of tasks that have ended. They are deleted with their task."""

    @abstractmethod
    def load(self, task_id: str, *, after: tuple[int, int] = (0, -1), limit: int = 100) -> list[StepsRecord]:
        """Return the steps of a task in the order in which they were written.

        Args:
            task_id: The task.
            after: Only rows whose attempt and `first` are greater.
            limit: The most rows to return.
        """

    @abstractmethod
    def put(self, steps: Collection[StepsRecord]) -> None:
        """Insert the rows, or overwrite those with the same key."""
