"""The contract of a state store: what the control plane keeps, and how it writes it.

A store holds rows (the records below) and does not interpret them; that is the work of
`llama_deploy.control_plane.decisions`. All access happens in a function that you hand to the store:

* `StateStore.transact(work)` runs `work(tx)` in one write transaction. When it returns, everything is
  durable; when it raises, nothing has happened. Transactions follow one another; each sees all before it.
* `StateStore.read(work)` runs `work(tx)` on a consistent snapshot and beside writers.

`work` is synchronous and runs where the driver wants it (a thread, a greenlet), so it may touch nothing but
its argument and immutable values. It may run more than once, when the database asks for that: what an earlier
run did is undone then. All methods take and return many rows at a time, so that a transaction for
one request and one for a hundred cost about the same.

A store that is `shared` takes several control planes at once. What a transaction tells with
`StoreTransaction.notify` comes out of `StateStore.notices` of the others, after the commit. To decide on
rows, a transaction first takes them with `StoreTransaction.lock`: the session stands for its tasks and all
that belongs to them, so that two control planes never decide on a session at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

from llama_deploy.types import SessionPolicy, TaskStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session."""

    session_id: str
    policy: SessionPolicy
    state: str
    """JSON object."""
    version: int
    """Grows by one with every write of the state."""
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task."""

    task_id: str
    session_id: str
    service_name: str
    input: str
    """The run arguments: JSON object."""
    status: TaskStatus
    created_at: datetime
    max_attempts: int
    attempt: int = 1
    """The attempt under way, or the next one if none is."""
    losses: int = 0
    """How many attempts were lost with their instance and not forgiven since, see `lifecycle.journal`."""
    instance_id: str | None = None
    token: str | None = None
    """The secret of the attempt under way."""
    claimed_at: datetime | None = None
    redispatch_at: datetime | None = None
    """When the message of the attempt is to be handed to the queue again if nobody has claimed it."""
    dispatches: int = 0
    """How often the message of the attempt under way was handed to the queue."""
    stream_length: int = 0
    """How many events the task's stream has."""
    attempt_events: int = 0
    """How many of them came from the attempt under way."""
    inbox_length: int = 0
    """How many events were sent to the task."""
    has_run: bool = False
    """Whether something of its run is stored: a `RunHeadRecord` and entries of its journal."""
    journal_length: int = 0
    """How many entries the journal of its run has had, those that a snapshot has replaced included."""
    running_seconds: float = 0.0
    """How long its run has been running, as the journal tells; without the time in which it waited."""
    wake_at: datetime | None = None
    """When a parked run is to be woken. None: only an event wakes it."""
    cancel_requested: bool = False
    finished_at: datetime | None = None
    result: str | None = None
    """The `TaskResult` as JSON, once the task has ended."""


PROGRESS: Final = (
    "stream_length",
    "attempt_events",
    "inbox_length",
    "has_run",
    "journal_length",
    "running_seconds",
)
"""The fields of a `TaskRecord` that `StoreTransaction.update_progress` overwrites."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event of a task's stream."""

    task_id: str
    index: int
    """From 0, without gaps."""
    type: str
    data: str
    """JSON object."""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class InboxRecord:
    """An event that was sent to a task."""

    task_id: str
    seq: int
    """From 1, without gaps."""
    event: str
    """The `EventDefinition` as JSON."""
    idempotency_key: str | None = None
    """Unique among those of the task, None aside."""


@dataclass(frozen=True, slots=True)
class RunHeadRecord:
    """What a run goes on from, together with the journal entries after it."""

    task_id: str
    fingerprint: str
    library_version: str
    snapshot: str | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One entry of a run's journal."""

    task_id: str
    seq: int
    """From 0. Those before the present snapshot are gone."""
    entry: str


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A message that is to be handed to the queue, stored with the change that it speaks of."""

    message_id: str
    topic: str
    message: str
    """The `QueueMessage` in its wire form."""
    relay_at: datetime | None = None
    """From when on another control plane may hand it to the queue. None: at once."""


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service."""

    service_name: str
    definition: str
    """The `ServiceDefinition` as JSON, without instances."""


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """A running copy of a service."""

    instance_id: str
    service_name: str
    host: str | None
    port: int | None
    last_heartbeat: datetime
    lease_expires_at: datetime


@dataclass(frozen=True, slots=True)
class Notice:
    """What a transaction tells the other control planes on its store."""

    task_ids: frozenset[str] = frozenset()
    """Tasks whose stream has grown, or that were deleted."""
    due: datetime | None = None
    """When something has to be looked at: a timer of a parked run, the end of a new lease."""
    everything: bool = False
    """Anything may have changed: notices come from now on, or too many came at once."""
    lost: bool = False
    """No notices come for now: the connection to the database is lost, and perhaps not only here."""


class StoreTransaction(ABC):
    """The rows, inside one transaction. In `StateStore.read` only the methods that read may be called.

    Reading methods return what there is: an id that does not exist is missing from the answer, and nothing is
    updated or deleted for it. Inside `StateStore.transact`, the sessions, tasks and instances that were read
    stay as they are until the transaction ends, and the services that were read stay there.
    """

    # -- several control planes; a store that takes only one has nothing to do

    def lock(  # noqa: B027 - nothing to do is the default
        self,
        *,
        session_ids: Collection[str] = (),
        task_ids: Collection[str] = (),
        instance_ids: Collection[str] = (),
    ) -> None:
        """Wait until nobody else decides on these, and keep others from doing so.

        Called once and first, so that transactions wait for each other in one order and never in a circle.

        Args:
            session_ids: Sessions.
            task_ids: Tasks, whose sessions are meant.
            instance_ids: Instances; the sessions of the tasks that they run are meant too.
        """

    def lock_free(self, task_ids: Collection[str]) -> set[str]:
        """Like `lock` for tasks, but leave those out that somebody else decides on now; return the others."""
        return set(task_ids)

    def notify(self, notice: Notice) -> None:  # noqa: B027 - as above
        """Tell the other control planes, once the transaction is durable."""

    # -- sessions

    @abstractmethod
    def load_sessions(self, session_ids: Collection[str]) -> dict[str, SessionRecord]:
        """Return the sessions by id."""

    @abstractmethod
    def list_sessions(self, *, after: str = "", limit: int = 1000) -> list[SessionRecord]:
        """Return sessions whose id is greater than `after`, ordered by id."""

    @abstractmethod
    def insert_sessions(self, sessions: Sequence[SessionRecord]) -> None:
        """Store new sessions."""

    @abstractmethod
    def update_sessions(self, sessions: Sequence[SessionRecord]) -> None:
        """Overwrite `policy`, `state` and `version`."""

    @abstractmethod
    def delete_sessions(self, session_ids: Collection[str]) -> None:
        """Delete the sessions with their tasks, events, inboxes and runs. Unknown ids are ignored."""

    # -- tasks

    @abstractmethod
    def load_tasks(self, task_ids: Collection[str]) -> dict[str, TaskRecord]:
        """Return the tasks by id."""

    @abstractmethod
    def session_tasks(self, session_ids: Collection[str], *, open_only: bool = False) -> list[TaskRecord]:
        """Return the tasks of the sessions in the order in which they were inserted.

        With `open_only`, only those without a `finished_at`.
        """

    @abstractmethod
    def instance_tasks(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        """Return the running tasks that the instances have claimed, in the order of insertion."""

    @abstractmethod
    def queued_tasks(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `queued`, by their `redispatch_at`, then in the order of insertion.

        Args:
            due_before: Only those with an earlier `redispatch_at`. None: all, those without one first.
            limit: The most tasks to return.
        """

    @abstractmethod
    def sleeping_tasks(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        """Return tasks in the status `waiting` with a `wake_at`, by that, then in the order of insertion.

        Args:
            due_before: Only those with an earlier `wake_at`. None: all.
            limit: The most tasks to return.
        """

    @abstractmethod
    def insert_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        """Store new tasks; their order is the order of their session."""

    @abstractmethod
    def update_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        """Overwrite everything but the id, session, service, input and creation time."""

    @abstractmethod
    def update_progress(self, tasks: Sequence[TaskRecord]) -> None:
        """Overwrite the fields in `PROGRESS`. No index holds them, so this costs less than `update_tasks`."""

    # -- event streams and inboxes

    @abstractmethod
    def load_events(self, task_id: str, *, after: int = -1, limit: int = 1000) -> list[EventRecord]:
        """Return the events whose index is greater than `after`, in order."""

    @abstractmethod
    def insert_events(self, events: Sequence[EventRecord]) -> None:
        """Store new events."""

    @abstractmethod
    def load_inbox(self, task_ids: Collection[str]) -> list[InboxRecord]:
        """Return the tasks' inbox entries that are not consumed, ordered by task and sequence number."""

    @abstractmethod
    def known_inbox_keys(self, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those of the pairs (task id, idempotency key) that inbox entries have, consumed ones too."""

    @abstractmethod
    def insert_inbox(self, entries: Sequence[InboxRecord]) -> None:
        """Store new inbox entries."""

    @abstractmethod
    def consume_inbox(self, entries: Collection[tuple[str, int]]) -> None:
        """Mark inbox entries, each a task id and a sequence number, as consumed. Unknown ones are ignored."""

    # -- runs and their journals

    @abstractmethod
    def load_runs(self, task_ids: Collection[str]) -> dict[str, RunHeadRecord]:
        """Return the heads of the runs by task id."""

    @abstractmethod
    def put_runs(self, runs: Sequence[RunHeadRecord]) -> None:
        """Insert the heads, or overwrite those of the same task.

        A `snapshot` or `state` of None stays as it is stored. A head that brings nothing new costs no write.
        """

    @abstractmethod
    def load_journal(self, task_ids: Collection[str]) -> list[JournalRecord]:
        """Return the journal entries of the tasks, ordered by task and sequence number."""

    @abstractmethod
    def insert_journal(self, entries: Sequence[JournalRecord]) -> None:
        """Store new journal entries."""

    @abstractmethod
    def trim_journal(self, lengths: Mapping[str, int]) -> None:
        """Delete the journal entries of each task whose sequence number is smaller than the one given."""

    @abstractmethod
    def delete_runs(self, task_ids: Collection[str]) -> None:
        """Delete the runs of the tasks with their journals. Unknown ids are ignored."""

    # -- outbox

    @abstractmethod
    def load_outbox(self, *, limit: int = 1000) -> list[OutboxRecord]:
        """Return the oldest outbox messages in the order in which they were inserted."""

    @abstractmethod
    def take_outbox(self, *, now: datetime, until: datetime, limit: int = 1000) -> list[OutboxRecord]:
        """Take over the oldest outbox messages that are due, in the order in which they were inserted.

        Those that another transaction takes at this moment are left to it.

        Args:
            now: Only those with a `relay_at` that is not later, or without one.
            until: Becomes their `relay_at`.
            limit: The most messages to take.

        Returns:
            The messages as they are now.
        """

    @abstractmethod
    def insert_outbox(self, messages: Sequence[OutboxRecord]) -> None:
        """Store messages to be sent."""

    @abstractmethod
    def delete_outbox(self, message_ids: Collection[str]) -> None:
        """Delete sent messages. Unknown ids are ignored."""

    # -- services and instances

    @abstractmethod
    def load_services(self, service_names: Collection[str] | None = None) -> dict[str, ServiceRecord]:
        """Return the services by name. None: all."""

    @abstractmethod
    def put_services(self, services: Sequence[ServiceRecord]) -> None:
        """Insert the services, or overwrite those of the same name."""

    @abstractmethod
    def delete_services(self, service_names: Collection[str]) -> None:
        """Delete the services with their instances. Unknown names are ignored."""

    @abstractmethod
    def load_instances(
        self, *, service_names: Collection[str] | None = None, instance_ids: Collection[str] | None = None
    ) -> list[InstanceRecord]:
        """Return the instances that match both filters, ordered by id. None: no filter."""

    @abstractmethod
    def put_instances(self, instances: Sequence[InstanceRecord]) -> None:
        """Insert the instances, or overwrite those of the same id."""

    @abstractmethod
    def delete_instances(self, instance_ids: Collection[str]) -> None:
        """Delete the instances. Unknown ids are ignored."""


class StateStore(ABC):
    """A live state store. `close` it, or use it with `async with`."""

    shared: ClassVar[bool] = False
    """Whether several control planes may work on it at once."""

    @classmethod
    @abstractmethod
    async def schema_revision(cls, uri: str) -> str | None:
        """Return the revision of the schema at `uri`, None if there is none. Changes nothing.

        Raises:
            ConfigError: The address cannot work.
            UnavailableError: The database does not answer.
        """

    @classmethod
    @abstractmethod
    async def connect(cls, uri: str) -> Self:
        """Open the store at `uri` and bring its schema up to date.

        Raises:
            ConfigError: The address cannot work, or its schema is newer than this release.
            StoreLockedError: Another control plane works on it, and the store takes only one.
            UnavailableError: The database does not answer.
        """

    @abstractmethod
    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:
        """Run `work` in one write transaction and return its value once that is durable.

        Args:
            work: The function.
            synced: Whether it has to outlive a power cut. What does not outlives the death of this process
                all the same, and a later synced transaction makes it safe too.

        What `work` raises is raised here, after everything was rolled back.

        Raises:
            ConflictError: A row that was to be inserted has the key of one that exists.
            UnavailableError: The store is closed, or the database does not answer.
        """

    @abstractmethod
    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        """Run `work` on a consistent snapshot and return its value.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """

    async def has_company(self) -> bool:
        """Whether another control plane listens to the `notices` of this store.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """
        return False

    async def notices(self) -> AsyncGenerator[Notice, None]:
        """Yield what other control planes tell, until the store is closed; for one reader.

        Yields:
            `Notice(everything=True)` as soon as nothing is missed any more, at the start and after every loss
            of the connection, which is told as `Notice(lost=True)`. A store that is not `shared` has none.
        """
        nothing: tuple[Notice, ...] = ()
        for notice in nothing:
            yield notice

    @abstractmethod
    async def close(self) -> None:
        """Finish what is under way and close. Deletes nothing. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
