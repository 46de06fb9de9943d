"""The state store in PostgreSQL: for any number of control planes.

A transaction runs at the isolation level `READ COMMITTED` and locks the rows that it decides on, in one
order: instances, then sessions. The lock of a session covers its tasks and all that belongs to them.
`REPEATABLE READ` would need the same locks, and would fail whenever two control planes change a row at the
same time; see "Transaction Isolation" in PostgreSQL's documentation. Transactions that still fail because of
others, such as in a deadlock, are repeated here.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from typing import Any, Final, Self, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.errors import LlamaDeployError, UnavailableError
from llama_deploy.state_stores.base import (
    Notice,
    StateStore,
    StoreSizes,
    StoreTableSize,
    StoreTransaction,
)
from llama_deploy.state_stores.notices import Mailbox, decode_notice, encode_notice
from llama_deploy.state_stores.postgresql_errors import (
    DRIVER_ERRORS,
    is_caused_by_others,
    raise_translated,
    text_of,
)
from llama_deploy.state_stores.postgresql_opening import Address, Place, look_at, make_ready, new_engine
from llama_deploy.state_stores.sql.access import pad
from llama_deploy.state_stores.sql.tables import instances, metadata, sessions, task_is_running, tasks
from llama_deploy.state_stores.sql.transaction import SQLTransaction

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PING_SECONDS: Final = 10.0
"""How often the connection for notices is checked: a dead peer is as silent as one without notices."""
_MAX_RUNS: Final = 8
"""How often a transaction is run that fails because of others."""
_RERUN: Final = Backoff(first=0.01, longest=0.5)
_RECONNECT: Final = Backoff(first=0.05, longest=2.0)

_ids: sa.BindParameter[str] = sa.bindparam("ids", expanding=True)
_LOCK_INSTANCES = (
    sa.select(instances.c.instance_id)
    .where(instances.c.instance_id.in_(_ids))
    .order_by(instances.c.instance_id)
    .with_for_update()
)
_session_of_tasks = sa.select(tasks.c.session_id).where(
    tasks.c.task_id.in_(sa.bindparam("task_ids", expanding=True))
)
_session_of_instances = sa.select(tasks.c.session_id).where(
    tasks.c.instance_id.in_(sa.bindparam("instance_ids", expanding=True)), task_is_running
)
_session_ids = sa.select(sessions.c.session_id)


def _lock_sessions(which: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
    return _session_ids.where(which).order_by(sessions.c.session_id).with_for_update()


_LOCK_SESSIONS = _lock_sessions(sessions.c.session_id.in_(_ids))
_LOCK_SESSIONS_OF_TASKS = _lock_sessions(sessions.c.session_id.in_(_session_of_tasks))
_named = sa.select(sessions.c.session_id).where(sessions.c.session_id.in_(_ids))
_LOCK_ALL_SESSIONS = _lock_sessions(
    sessions.c.session_id.in_(sa.union_all(_named, _session_of_tasks, _session_of_instances))
)
_LOCK_FREE = (
    sa.select(tasks.c.task_id)
    .join(sessions, sessions.c.session_id == tasks.c.session_id)
    .where(tasks.c.task_id.in_(_ids))
    .with_for_update(skip_locked=True, of=sessions)
)
_NOTIFY = sa.select(
    sa.func.pg_notify(sa.bindparam("channel", type_=sa.Text), sa.bindparam("text", type_=sa.Text))
)
# See "pg_locks" in PostgreSQL's documentation.
_HOLDERS = sa.text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid::bigint = :high AND objid::bigint = :low"
)
_SIZES = sa.text(
    """
    SELECT relname, reltuples, pg_total_relation_size(pg_class.oid) AS size
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = current_schema() AND relkind = 'r' AND relname = ANY(:names)
    ORDER BY size DESC, relname
    """
)
"""The tables with their indexes. The numbers of rows are estimates, below 0 if there is none yet."""
_COUNTS = {name: sa.select(sa.func.count()).select_from(table) for name, table in metadata.tables.items()}
_CHANGE_NOTHING = sa.update(tasks).where(sa.false()).values(task_id=tasks.c.task_id)
_WRITE_LOG = sa.select(sa.func.pg_logical_emit_message(sa.true(), "llama_deploy", "check"))
"""Writes a record of a few bytes to the log, which the commit has to make durable."""


class PostgreSQLStateStore(StateStore):
    """A state store in a database of PostgreSQL, 14 or newer.

    It connects on demand and reconnects by itself. While the database does not answer, every call raises
    `UnavailableError`. A transaction whose connection is lost before its commit was sent is run again.
    """

    shared = True

    def __init__(self, engine: AsyncEngine, *, address: Address, place: Place) -> None:
        self._engine = engine
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._address = address
        self._place = place
        self._sender = uuid.uuid4().hex[:12]
        self._transaction = partial(_Transaction, sender=self._sender, channel=place.channel)
        self._listeners: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def schema_revision(cls, uri: str) -> str | None:
        address = Address(uri)
        engine = new_engine(address)
        try:
            return (await look_at(engine, address)).revision
        finally:
            await engine.dispose()

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Open the store and bring its schema up to date; several may do so at once.

        Args:
            uri: `postgresql://user:password@host:port/database`, with `?sslmode=require` or another mode of
                libpq, and its files `sslrootcert`, `sslcert` and `sslkey`. What is left out comes from the
                variables `PGHOST`, `PGUSER` and so on of libpq.

        Raises:
            ConfigError: The address is invalid, the database is not a state store, its schema is of another
                version, or the role lacks rights.
            UnavailableError: The database does not answer.
        """
        address = Address(uri)
        engine = new_engine(address)
        try:
            place = await make_ready(engine, address)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, address=address, place=place)

    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:
        def run(connection: sa.Connection) -> T:
            if not synced:
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
            return work(self._transaction(connection, lock_rows=True))

        return await self._run(self._engine, run)

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        return await self._run(
            self._reading, lambda connection: work(self._transaction(connection, lock_rows=False))
        )

    async def check_writable(self) -> None:
        def run(connection: sa.Connection) -> None:
            connection.execute(_CHANGE_NOTHING)  # needs the right to write, and a database that allows it
            connection.execute(_WRITE_LOG)

        await self._run(self._engine, run)

    async def sizes(self, *, exact: bool = False) -> StoreSizes:
        def run(connection: sa.Connection) -> StoreSizes:
            tables = [
                StoreTableSize(name, None if rows < 0 else int(rows), int(size))
                for name, rows, size in connection.execute(_SIZES, {"names": list(metadata.tables)})
            ]
            if exact:
                tables = [each._replace(rows=connection.scalar(_COUNTS[each.name])) for each in tables]
            total = sum(each.bytes or 0 for each in tables)
            return StoreSizes("postgresql", total_bytes=total, tables=tables)

        return await self._run(self._reading, run)

    async def has_company(self) -> bool:
        alone = sa.select(sa.func.pg_try_advisory_xact_lock(self._place.listening_lock))
        return not await self._run(self._engine, lambda connection: bool(connection.scalar(alone)))

    async def has_older_company(self) -> bool:
        return await self._run(
            self._engine,
            lambda connection: (
                _holders(connection, self._place.listening_lock)
                > _holders(connection, self._place.packs_lock)
            ),
        )

    async def notices(self) -> AsyncGenerator[Notice, None]:
        self._check_open()
        mailbox = Mailbox()
        listener = _Listener(self._address, self._place, mailbox, sender=self._sender)
        listening = asyncio.create_task(listener.run(), name="postgresql-notices")
        self._listeners.add(listening)
        listening.add_done_callback(lambda _: mailbox.put(Notice()))  # so that the wait for one ends
        try:
            while not listening.done():
                notice = await mailbox.take()
                if not listening.done():
                    yield notice
            if not listening.cancelled():  # as `close` does
                listening.result()
        finally:
            self._listeners.discard(listening)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._finish())
        await asyncio.shield(self._closing)

    async def _finish(self) -> None:
        for listening in self._listeners:
            listening.cancel()
        await self._idle.wait()
        await self._engine.dispose()

    def _check_open(self) -> None:
        if self._closing is not None:
            raise UnavailableError(f"the state store {self._address.name} is closed")

    async def _run(self, engine: AsyncEngine, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction, and repeat it if the database asks for that."""
        self._check_open()
        self._under_way += 1
        self._idle.clear()
        try:
            return await self._until_done(engine, work)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _until_done(self, engine: AsyncEngine, work: Callable[[sa.Connection], T]) -> T:
        for count in range(1, _MAX_RUNS + 1):
            attempt = _Attempt(work)
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(attempt.run)
            except LlamaDeployError:
                raise
            except DRIVER_ERRORS as exc:
                again = (
                    count < _MAX_RUNS if is_caused_by_others(exc) else count == 1 and attempt.was_cut_off(exc)
                )
                if not again:
                    raise_translated(exc, self._address.name)
                logger.debug("repeating a transaction: %s", text_of(exc), extra={"action": "run_again"})
            await asyncio.sleep(_RERUN.delay(count))
        raise AssertionError("unreachable")


def _holders(connection: sa.Connection, lock: int) -> int:
    """Return how many connections hold an advisory lock of this database."""
    return int(connection.execute(_HOLDERS, {"high": lock >> 32, "low": lock & 0xFFFFFFFF}).scalar_one())


class _Attempt:
    """One run of a transaction, which remembers whether its commit was sent."""

    def __init__(self, work: Callable[[sa.Connection], T]) -> None:
        self._work = work
        self._is_ending = False

    def run(self, connection: sa.Connection) -> Any:
        with connection.begin():
            value = self._work(connection)
            self._is_ending = True
        return value

    def was_cut_off(self, exc: BaseException) -> bool:
        """Whether the connection was lost before anything can have been committed."""
        return not self._is_ending and isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated


class _Transaction(SQLTransaction):
    """A transaction that shares its database with those of other control planes."""

    def __init__(self, connection: sa.Connection, *, lock_rows: bool, sender: str, channel: str) -> None:
        super().__init__(connection, lock_rows=lock_rows)
        self._sender = sender
        self._channel = channel

    def lock(
        self,
        *,
        session_ids: Collection[str] = (),
        task_ids: Collection[str] = (),
        instance_ids: Collection[str] = (),
    ) -> None:
        if instance_ids:
            self._connection.execute(_LOCK_INSTANCES, {"ids": pad(instance_ids)})
        if instance_ids or (session_ids and task_ids):
            parameters = {
                "ids": pad(session_ids),
                "task_ids": pad(task_ids),
                "instance_ids": pad(instance_ids),
            }
            self._connection.execute(_LOCK_ALL_SESSIONS, parameters)
        elif task_ids:
            self._connection.execute(_LOCK_SESSIONS_OF_TASKS, {"task_ids": pad(task_ids)})
        elif session_ids:
            self._connection.execute(_LOCK_SESSIONS, {"ids": pad(session_ids)})

    def lock_free(self, task_ids: Collection[str]) -> set[str]:
        if not task_ids:
            return set()
        return {row[0] for row in self._connection.execute(_LOCK_FREE, {"ids": pad(task_ids)})}

    def notify(self, notice: Notice) -> None:
        for text in encode_notice(notice, sender=self._sender):
            self._connection.execute(_NOTIFY, {"channel": self._channel, "text": text})


class _Listener:
    """Puts the notices of other control planes into a mailbox, over a connection of its own."""

    def __init__(self, address: Address, place: Place, mailbox: Mailbox, *, sender: str) -> None:
        self._address = address
        self._place = place
        self._mailbox = mailbox
        self._sender = sender
        self._outage = Outage(on_start=self._warn, on_end=self._log_end)

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            connection = await retry(self._connect, backoff=_RECONNECT, outage=self._outage)
            try:
                await self._listen(connection)
            except DRIVER_ERRORS as exc:
                self._warn(exc)
            finally:
                connection.terminate()
            self._mailbox.put(Notice(lost=True))

    async def _connect(self) -> Any:
        try:
            return await asyncpg.connect(**self._address.driver_arguments)
        except DRIVER_ERRORS as exc:
            raise UnavailableError(text_of(exc)) from exc

    async def _listen(self, connection: Any) -> None:
        """Listen until the connection is lost."""
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        # Before the other lock, so that no release that reads packs seems to be an older one.
        for lock in (self._place.packs_lock, self._place.listening_lock):
            await connection.execute(f"SELECT pg_advisory_lock_shared({lock})")
        await connection.add_listener(self._place.channel, self._receive)
        self._mailbox.put(Notice(everything=True))
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _PING_SECONDS)
                break
            if await connection.fetchval("SHOW transaction_read_only", timeout=_PING_SECONDS) == "on":
                break  # after a failover, notices are sent by the new primary

    def _receive(self, _connection: object, _pid: int, _channel: str, text: str) -> None:
        sender, notice = decode_notice(text)
        if sender != self._sender:
            self._mailbox.put(notice)

    def _warn(self, exc: BaseException) -> None:
        logger.warning(
            "no notices from %s; reconnecting: %s",
            self._address.name,
            text_of(exc),
            extra={"action": "notices_lost"},
        )

    def _log_end(self) -> None:
        logger.info("notices from %s again", self._address.name, extra={"action": "notices_back"})
