"""The contract of a state store: transactions over the rows of the control plane.

A store holds rows (`llama_deploy.state_stores.records`) and does not interpret them; that is the work of
`llama_deploy.control_plane.decisions`. All access happens in a function that you hand to the store:

* `StateStore.transact(work)` runs `work(tx)` in one write transaction. When it returns, everything is
  durable; when it raises, nothing has happened. Transactions follow one another; each sees all before it.
* `StateStore.read(work)` runs `work(tx)` on a consistent snapshot, concurrently with writers.

`work` is synchronous and runs where the driver wants it (a thread, a greenlet), so it may touch nothing but
its argument and immutable values. It may run more than once if the database asks for that; what an earlier
run did is undone then.

A store that is `shared` takes several control planes at once. `StateStore.notices` yields what the
transactions of the others send with `StoreTransaction.notify`, after the commit. To decide on rows, a
transaction first locks them with `StoreTransaction.lock`: the lock of a session covers its tasks and all that
belongs to them, so that two control planes never decide on a session at the same time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

from llama_deploy.concurrency.closing import AsyncCloseable
from llama_deploy.state_stores.api_key_repository import ApiKeyRepository
from llama_deploy.state_stores.audit_repository import AuditRepository
from llama_deploy.state_stores.feed_repository import FeedRepository
from llama_deploy.state_stores.list_repositories import StepsRepository, TaskListRepository
from llama_deploy.state_stores.question_repository import QuestionRepository
from llama_deploy.state_stores.repositories import (
    EventRepository,
    InboxRepository,
    InstanceRepository,
    OutboxRepository,
    RunRepository,
    ServiceRepository,
    SessionRepository,
    TaskRepository,
)
from llama_deploy.state_stores.retention_rows import RetentionRepository

T = TypeVar("T")


class StoreTableSize(NamedTuple):
    """How large a table is. None: not known."""

    name: str
    rows: int | None
    bytes: int | None


@dataclass(frozen=True, slots=True)
class StoreSizes:
    """How large a store is. None: not known."""

    store: str
    """The kind of store."""
    total_bytes: int | None = None
    free_bytes: int | None = None
    """How much of it is unused, and free for new rows."""
    log_bytes: int | None = None
    """How much of it is a write-ahead log."""
    tables: Sequence[StoreTableSize] = ()


@dataclass(frozen=True, slots=True)
class Notice:
    """What a transaction reports to the other control planes on its store."""

    task_ids: frozenset[str] = frozenset()
    """Tasks whose stream has grown, or that were deleted."""
    due: datetime | None = None
    """When something becomes due: a timer of a parked run, or the end of a new lease."""
    everything: bool = False
    """Anything may have changed: notices arrive from now on, or there were too many at once."""
    feeds: bool = False
    """Somebody reads a feed: for some seconds, notices are to name each task whose status changes."""
    keys: bool = False
    """An API key was revoked."""
    lost: bool = False
    """Notices do not arrive for now: the connection to the database is lost, perhaps not only here."""


@dataclass(kw_only=True, eq=False)
class StoreTransaction:
    """The rows inside one transaction, by entity. In `StateStore.read` only methods that read may be called.

    Inside `StateStore.transact`, the sessions, tasks and instances that were read cannot be changed by others
    until the transaction ends, and the services that were read cannot be deleted.

    `lock`, `lock_free` and `notify` do nothing here; a `shared` store overrides them.
    """

    sessions: SessionRepository
    tasks: TaskRepository
    task_lists: TaskListRepository
    steps: StepsRepository
    events: EventRepository
    feeds: FeedRepository
    inbox: InboxRepository
    runs: RunRepository
    questions: QuestionRepository
    retention: RetentionRepository
    outbox: OutboxRepository
    services: ServiceRepository
    instances: InstanceRepository
    api_keys: ApiKeyRepository
    audit: AuditRepository

    def lock(
        self,
        *,
        session_ids: Collection[str] = (),
        task_ids: Collection[str] = (),
        instance_ids: Collection[str] = (),
    ) -> None:
        """Wait until no other control plane decides on these rows, and lock them.

        Call it once and first, so that all transactions lock in the same order and cannot deadlock.

        Args:
            session_ids: Sessions.
            task_ids: Tasks; their sessions are locked.
            instance_ids: Instances; the sessions of the tasks that they run are locked too.
        """

    def lock_free(self, task_ids: Collection[str]) -> set[str]:
        """Like `lock` for tasks, but skip those that another control plane has locked; return the others."""
        return set(task_ids)

    def notify(self, notice: Notice) -> None:
        """Send a notice to the other control planes once the transaction is durable."""


def _change_nothing(_tx: StoreTransaction) -> None:
    """Work that reads and writes nothing."""


class StateStore(AsyncCloseable):
    """A live state store. `close` it, or use it with `async with`."""

    shared: ClassVar[bool] = False
    """Whether several control planes may work on it at once."""

    @classmethod
    @abstractmethod
    async def schema_revision(cls, uri: str) -> str | None:
        """Return the revision of the schema at `uri`, None if there is none. Changes nothing.

        Raises:
            ConfigError: The address is invalid.
            UnavailableError: The database does not answer.
        """

    @classmethod
    @abstractmethod
    async def connect(cls, uri: str) -> Self:
        """Open the store at `uri` and bring its schema up to date.

        Raises:
            ConfigError: The address is invalid, or its schema is of another version.
            StoreLockedError: Another control plane uses it, and the store takes only one.
            UnavailableError: The database does not answer.
        """

    @abstractmethod
    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:
        """Run `work` in one write transaction and return its value once that is durable.

        Args:
            work: The function.
            synced: Whether it has to survive a power failure. Without it, it still survives the death of this
                process, and the next synced transaction makes it safe too.

        An error of `work` is raised here, after everything was rolled back.

        Raises:
            ConflictError: A new row has the key of an existing one.
            UnavailableError: The store is closed, or the database does not answer.
        """

    @abstractmethod
    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        """Run `work` on a consistent snapshot and return its value.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """

    @property
    def folder(self) -> Path | None:
        """The folder of this machine in which the store keeps its data. None: it is elsewhere."""
        return None

    async def check_writable(self) -> None:
        """Write something small that changes no rows, and return when it is durable.

        A store that does not override this only begins and ends a transaction.

        Raises:
            UnavailableError: Nothing can be stored now; the text says why.
        """
        await self.transact(_change_nothing)

    async def shrink(self, *, max_pages: int) -> bool:
        """Return some unused space to the file system; return whether there may be more.

        Args:
            max_pages: The most pages of the database to move. It is a write transaction, so few.

        A store whose database does this by itself does nothing.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """
        del max_pages
        return False

    async def sizes(self, *, exact: bool = False) -> StoreSizes:
        """Return how large the store is. Takes milliseconds, unless `exact`.

        Args:
            exact: Whether to measure and count everything, which reads the whole store.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """
        del exact
        return StoreSizes(type(self).__name__)

    async def has_company(self) -> bool:
        """Whether another control plane listens to the `notices` of this store.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """
        return False

    async def has_older_company(self) -> bool:
        """Whether a control plane works on this store whose release does not read packs of events.

        Raises:
            UnavailableError: The store is closed, or the database does not answer.
        """
        return False

    async def notices(self) -> AsyncGenerator[Notice, None]:
        """Yield the notices of other control planes until the store is closed. Only one reader.

        Yields:
            `Notice(everything=True)` first, and again after each loss of the connection, which is reported as
            `Notice(lost=True)`. A store that is not `shared` yields nothing.
        """
        nothing: tuple[Notice, ...] = ()
        for notice in nothing:
            yield notice

    @abstractmethod
    async def close(self) -> None:
        """Finish transactions under way and close. Deletes nothing. Idempotent."""
