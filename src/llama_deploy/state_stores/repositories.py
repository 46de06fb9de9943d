"""What a state store does with its rows: one repository per entity.

Methods take and return many rows, so that a transaction for one request and one for a hundred cost about the
same. Rows that are read *lean* have a `Deferred` in place of each large value; see `large_values`. Methods
that read return the rows that exist: an unknown id is missing from the answer. Methods that
update or delete ignore unknown ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from llama_deploy.state_stores.records import (
    EventPackRecord,
    EventRecord,
    InboxRecord,
    InstanceRecord,
    JournalRecord,
    JournalStartRecord,
    OutboxRecord,
    RunCopy,
    RunGroupRecord,
    RunHeadRecord,
    RunNeedsRecord,
    RunPastRecord,
    RunSizeRecord,
    SavedStateRecord,
    ServiceRecord,
    SessionHeadRecord,
    SessionRecord,
    TaskRecord,
    TaskSizeRecord,
    VersionRecord,
)
from llama_deploy.types import SessionPolicy
from llama_deploy.types.owners import Owner


class SessionRepository(ABC):
    """Sessions."""

    @abstractmethod
    def load(self, session_ids: Collection[str], *, lean: bool = False) -> dict[str, SessionRecord]:
        """Return the sessions by id."""

    @abstractmethod
    def page(
        self, *, owner: Owner | None = None, after: str = "", limit: int = 1000, lean: bool = False
    ) -> list[SessionRecord]:
        """Return sessions whose id is greater than `after`, ordered by id.

        Args:
            owner: To whom they belong. None: to anybody.
            after: An id. Empty: from the first on.
            limit: How many to return at most.
            lean: Whether large states are left out.
        """

    @abstractmethod
    def heads(
        self,
        *,
        owner: Owner | None = None,
        tag: str | None = None,
        after: str | None = None,
        newest_first: bool,
        limit: int,
    ) -> list[SessionHeadRecord]:
        """Return sessions without their states, ordered by id: ids that the library has made grow with time.

        Args:
            owner: To whom they belong. None: to anybody.
            tag: Only sessions with this tag. None: all.
            after: Only those that follow the session with this id in the order. None: from the first on.
            newest_first: Whether the greatest id comes first.
            limit: How many to return at most.
        """

    @abstractmethod
    def saved_states(self, session_id: str) -> list[SavedStateRecord]:
        """Return earlier states of a session, the oldest first."""

    @abstractmethod
    def save_states(self, states: Sequence[SavedStateRecord], *, keep: int) -> None:
        """Store earlier states of sessions, and delete those that are `keep` versions older or more."""

    @abstractmethod
    def policies(self, session_ids: Collection[str]) -> dict[str, SessionPolicy]:
        """Return the policies of the sessions by id, without locking them."""

    @abstractmethod
    def insert(self, sessions: Sequence[SessionRecord]) -> None:
        """Store new sessions with their tags."""

    @abstractmethod
    def update(self, sessions: Sequence[SessionRecord]) -> None:
        """Overwrite `policy`, `state`, `version` and `updated_at`. A deferred state stays as it is."""

    @abstractmethod
    def delete(self, session_ids: Collection[str]) -> None:
        """Delete the sessions with their tags, earlier states, tasks, events, inboxes and runs."""


class TaskRepository(ABC):
    """Tasks. All methods that return several of them read them lean, unless they say otherwise."""

    @abstractmethod
    def load(self, task_ids: Collection[str], *, lean: bool = False) -> dict[str, TaskRecord]:
        """Return the tasks by id."""

    @abstractmethod
    def of_sessions(self, session_ids: Collection[str], *, open_only: bool = False) -> list[TaskRecord]:
        """Return the tasks of the sessions in the order in which they were inserted.

        With `open_only`, only those without a `finished_at`.
        """

    @abstractmethod
    def ids_of_sessions(self, session_ids: Collection[str]) -> dict[str, list[str]]:
        """Return the ids of the tasks of sessions that have any, by session, in the order of insertion."""

    @abstractmethod
    def sizes_in_session(
        self, session_id: str, *, after: tuple[datetime, int] | None = None, limit: int
    ) -> list[TaskSizeRecord]:
        """Return tasks of a session by the time of their creation and their position.

        Args:
            session_id: The session.
            after: Only tasks that follow this time and position. None: from the first one on.
            limit: How many to return at most.
        """

    @abstractmethod
    def retries_of(self, task_ids: Collection[str]) -> dict[str, list[str]]:
        """Return the ids of the tasks that retry others, by the task that they retry."""

    @abstractmethod
    def first_open(self, session_ids: Collection[str], *, limit: int) -> list[TaskRecord]:
        """Return tasks without a `finished_at`, in the order of insertion: of each session the first `limit`.

        Of a session that has more, there may be more; of one that has fewer, there are all.
        """

    @abstractmethod
    def of_instances(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        """Return the running tasks that the instances have claimed, in the order of insertion."""

    @abstractmethod
    def queued(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `queued`, by their `redispatch_at`, then in the order of insertion.

        Args:
            due_before: Only those with an earlier `redispatch_at`. None: all, those without one first.
            limit: The most tasks to return.
        """

    @abstractmethod
    def queued_for(self, service_name: str, *, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `queued` for a service, those that are due last first.

        Args:
            service_name: The `target` of the tasks.
            limit: The most tasks to return.
        """

    @abstractmethod
    def count_waiting(self, service_name: str) -> int:
        """Return how many tasks for a service are `pending` or `queued`.

        Args:
            service_name: The `target` of the tasks.
        """

    @abstractmethod
    def suspects(self) -> dict[str, int]:
        """Return how many suspects wait for an instance, by the name of the service that is to run them.

        These are tasks in the status `queued`, with at least `SUSPECT_DEATHS` deaths, and already published.
        """

    @abstractmethod
    def queued_since(self) -> dict[str, datetime]:
        """Return since when the task that has been queued for the longest time is, by `service_name`.

        Each queued task is looked at.
        """

    @abstractmethod
    def sleeping(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `waiting` with a `wake_at`, by that, then in the order of insertion.

        Args:
            due_before: Only those with an earlier `wake_at`. None: all.
            limit: The most tasks to return.
        """

    @abstractmethod
    def unrouted(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `pending` with a `redispatch_at`, by that, then in order of insertion.

        Args:
            due_before: Only those with an earlier `redispatch_at`. None: all.
            limit: The most tasks to return.
        """

    @abstractmethod
    def running_counts(self, instance_ids: Collection[str]) -> dict[str, int]:
        """Return how many running tasks the instances have claimed; those without one are left out."""

    @abstractmethod
    def held(self, service_names: Collection[str], *, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `queued` that not every version of these services can run.

        They have a run, or are pinned to a version. They come in the order of `queued`.
        """

    @abstractmethod
    def insert(self, tasks: Sequence[TaskRecord]) -> None:
        """Store new tasks; their order is the order of their session."""

    @abstractmethod
    def change(self, changes: Iterable[tuple[TaskRecord, TaskRecord]]) -> None:
        """Overwrite the fields in which tasks differ, but for the id and the fields in `FIXED`.

        Args:
            changes: Each task as it is stored, and as it is to be. One that does not exist is ignored.
        """

    def update(self, tasks: Sequence[TaskRecord]) -> None:
        """Read tasks, and overwrite the fields in which they differ. One that does not exist is ignored."""
        stored = self.load([task.task_id for task in tasks])
        self.change([(stored[task.task_id], task) for task in tasks if task.task_id in stored])


class EventRepository(ABC):
    """The event streams of tasks."""

    @abstractmethod
    def load(
        self, task_id: str, *, after: int = -1, limit: int = 1000, max_bytes: int | None = None
    ) -> list[EventRecord]:
        """Return the events of a task whose index is greater than `after`, in order.

        Args:
            task_id: The task.
            after: Only events whose index is greater.
            limit: How many events to return at most.
            max_bytes: The event with which their data has so many bytes is the last one. What follows it is
                not read into memory. None: without limit.
        """

    @abstractmethod
    def insert(self, events: Sequence[EventRecord]) -> None:
        """Store new events."""

    @abstractmethod
    def loose(self, task_id: str, *, limit: int = 1000, max_bytes: int | None = None) -> list[EventRecord]:
        """Return the first events of a task that are in no pack, in order, without the terminal one.

        Args:
            task_id: The task.
            limit: As for `load`.
            max_bytes: As for `load`.
        """

    @abstractmethod
    def last_pack(self, task_id: str) -> EventPackRecord | None:
        """Return the last pack of a task's stream, None if there is none."""

    @abstractmethod
    def put_packs(self, packs: Sequence[EventPackRecord]) -> None:
        """Store packs in place of the events in them. One at the position of a stored pack replaces it.

        Events are read in the same way, in a pack or not.
        """


class InboxRepository(ABC):
    """The events that were sent to tasks."""

    @abstractmethod
    def load(self, task_ids: Collection[str]) -> list[InboxRecord]:
        """Return the tasks' entries that are not consumed, ordered by task and sequence number."""

    @abstractmethod
    def history(self, task_id: str) -> list[tuple[InboxRecord, bool]]:
        """Return all entries of a task in order, each with whether it is consumed."""

    @abstractmethod
    def sizes(self, task_ids: Collection[str]) -> dict[str, int]:
        """Return how many bytes the entries take that are not consumed, for tasks that have any."""

    @abstractmethod
    def known_keys(self, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those of the pairs (task id, idempotency key) that entries have, consumed ones too."""

    @abstractmethod
    def insert(self, entries: Sequence[InboxRecord]) -> None:
        """Store new entries."""

    @abstractmethod
    def consume(self, entries: Collection[tuple[str, int]]) -> None:
        """Mark entries, each a task id and a sequence number, as consumed."""

    @abstractmethod
    def restore(self, task_ids: Collection[str]) -> None:
        """Mark all entries of the tasks as not consumed."""

    @abstractmethod
    def copy(self, targets: Mapping[str, str]) -> None:
        """Copy all entries of tasks, consumed ones too.

        Args:
            targets: The tasks that get them, each with an empty inbox, by the tasks that have them.
        """


class RunRepository(ABC):
    """The runs of tasks: their heads and journals."""

    @abstractmethod
    def load(self, task_ids: Collection[str]) -> dict[str, RunHeadRecord]:
        """Return the heads of the runs by task id."""

    @abstractmethod
    def sizes(self, task_ids: Collection[str]) -> dict[str, RunSizeRecord]:
        """Return how much is stored of the runs, by task id."""

    @abstractmethod
    def load_journal_starts(self, task_ids: Collection[str]) -> dict[str, JournalStartRecord]:
        """Return what the journals of the runs begin with, by task id. Their states are not read."""

    @abstractmethod
    def load_needs(self, task_ids: Collection[str]) -> dict[str, RunNeedsRecord]:
        """Return what the runs need, by task id."""

    @abstractmethod
    def groups(
        self, service_names: Collection[str], *, living: Collection[tuple[str, str]]
    ) -> list[RunGroupRecord]:
        """Return the tasks of services that are `queued` or `waiting` and that not every version can run.

        They have a run, or are pinned to a version. Those with the same fields of a group are counted.

        Args:
            service_names: The services.
            living: Pairs of a service and a version. Its tasks that this version has claimed last are left
                out, unless they are pinned.
        """

    @abstractmethod
    def suspects(
        self, service_names: Collection[str], *, living: Collection[tuple[str, str]], limit: int = 10_000
    ) -> list[RunGroupRecord]:
        """Return the suspects among the tasks of `groups`: those that `TaskRepository.suspects` counts.

        Args:
            service_names: The services.
            living: See `groups`.
            limit: How many suspects to look at, at most, of up to 500 services together.
        """

    @abstractmethod
    def put(self, runs: Sequence[RunHeadRecord]) -> None:
        """Insert the heads, or overwrite those of the same task.

        None as `snapshot`, `state`, `needs` or `origin` keeps the stored value. A head without a change costs
        no write.
        """

    @abstractmethod
    def delete(self, task_ids: Collection[str]) -> None:
        """Delete the runs of the tasks with their journals."""

    @abstractmethod
    def copy(self, copies: Sequence[RunCopy]) -> None:
        """Copy runs with their journals. Runs that do not exist are ignored."""

    @abstractmethod
    def copy_entries(self, source_id: str, target_id: str, *, length: int) -> None:
        """Copy the journal entries of a task whose sequence number is smaller than `length`."""

    @abstractmethod
    def count_entries(self, task_id: str) -> int:
        """Return how many journal entries a task has."""

    @abstractmethod
    def load_past(self, task_id: str) -> list[RunPastRecord]:
        """Return what the writes of a run have replaced, in the order of the writes."""

    @abstractmethod
    def put_past(self, records: Sequence[RunPastRecord]) -> None:
        """Store what writes have replaced, or overwrite what is stored of the same writes.

        None as `state_change` or `replaced` keeps the stored value.
        """

    @abstractmethod
    def trim_past(self, task_ids: Collection[str], *, max_bytes: int) -> None:
        """Delete what earlier writes have replaced, of each task, if all of it is larger than `max_bytes`."""

    @abstractmethod
    def load_journal(self, task_ids: Collection[str]) -> list[JournalRecord]:
        """Return the journal entries of the tasks, ordered by task and sequence number."""

    @abstractmethod
    def insert_journal(self, entries: Sequence[JournalRecord]) -> None:
        """Store new journal entries."""

    @abstractmethod
    def trim_journal(self, lengths: Mapping[str, int]) -> None:
        """Delete the journal entries of each task whose sequence number is smaller than the one given."""


class OutboxRepository(ABC):
    """The messages that are to be published."""

    @abstractmethod
    def load(
        self,
        *,
        after: int = 0,
        limit: int = 1000,
        topic: str | None = None,
        except_topics: Collection[str] = (),
    ) -> dict[int, OutboxRecord]:
        """Return messages by position, in the order in which they were inserted.

        Args:
            after: Only messages whose position is greater.
            limit: The most messages to return.
            topic: Only messages for this topic. None: for all topics.
            except_topics: If `topic` is None, no messages for these.
        """

    @abstractmethod
    def take(
        self, *, now: datetime, until: datetime, limit: int = 1000, except_topics: Collection[str] = ()
    ) -> list[OutboxRecord]:
        """Take over the oldest messages that are due, in the order in which they were inserted.

        Messages that another transaction takes at the same time are left to it.

        Args:
            now: Only messages with a `relay_at` that is not later, or without one; or one so late that the
                clock must have been set back since it was stored.
            until: Becomes their `relay_at`.
            limit: The most messages to take.
            except_topics: No messages for these.

        Returns:
            The messages as they are now.
        """

    @abstractmethod
    def insert(self, messages: Sequence[OutboxRecord]) -> None:
        """Store messages to be published."""

    @abstractmethod
    def delete(self, message_ids: Collection[str]) -> None:
        """Delete published messages."""


class ServiceRepository(ABC):
    """Services."""

    @abstractmethod
    def load(self, service_names: Collection[str] | None = None) -> dict[str, ServiceRecord]:
        """Return the services by name. None: all."""

    @abstractmethod
    def page(self, *, after: str = "", limit: int = 1000) -> list[ServiceRecord]:
        """Return the first services whose names follow `after`, in the order of the database."""

    @abstractmethod
    def put(self, services: Sequence[ServiceRecord]) -> None:
        """Insert the services, or overwrite those of the same name."""

    @abstractmethod
    def delete(self, service_names: Collection[str]) -> None:
        """Delete the services with their instances and versions."""

    @abstractmethod
    def load_versions(self, service_names: Collection[str]) -> list[VersionRecord]:
        """Return the versions of the services, ordered by service and version. They are not locked."""

    @abstractmethod
    def put_versions(self, versions: Sequence[VersionRecord]) -> None:
        """Insert the versions, or overwrite those with the same key."""

    @abstractmethod
    def delete_unused_versions(self, service_names: Collection[str]) -> None:
        """Delete the versions of the services that no instance has."""


class InstanceRepository(ABC):
    """Instances of services."""

    @abstractmethod
    def load(
        self, *, service_names: Collection[str] | None = None, instance_ids: Collection[str] | None = None
    ) -> list[InstanceRecord]:
        """Return the instances that match both filters, ordered by id. None: no filter."""

    @abstractmethod
    def page(self, service_name: str, *, after: str = "", limit: int = 1000) -> list[InstanceRecord]:
        """Return the first instances of a service whose ids follow `after`, ordered by id."""

    @abstractmethod
    def first(self, service_names: Collection[str], *, most: int) -> list[InstanceRecord]:
        """Return at most `most` instances of each service: those that are blocked, then the latest leases."""

    @abstractmethod
    def counts(self, service_names: Collection[str], *, now: datetime) -> dict[str, tuple[int, int]]:
        """Return how many instances each service has, and how many of them have a lease at `now`.

        A service without instances is left out.
        """

    @abstractmethod
    def look(self, service_names: Collection[str]) -> list[InstanceRecord]:
        """Return the instances of the services, ordered by id, without locking them."""

    @abstractmethod
    def put(self, instances: Sequence[InstanceRecord]) -> None:
        """Insert the instances, or overwrite those of the same id."""

    @abstractmethod
    def delete(self, instance_ids: Collection[str]) -> None:
        """Delete the instances."""
