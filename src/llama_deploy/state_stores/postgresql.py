"""The state store in PostgreSQL: for any number of control planes.

A transaction runs at the isolation level `READ COMMITTED` and locks what it decides on, in one order:
instances, then sessions. The row of a session stands for its tasks and all that belongs to them.
`REPEATABLE READ` would not save the locks and would fail wherever two control planes meet on a row; see
"Transaction Isolation" in PostgreSQL's documentation. What fails all the same for the sake of others is run
again here.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import Any, Final, NoReturn, Self, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from llama_deploy.backoff import Backoff
from llama_deploy.errors import (
    ConfigError,
    ConflictError,
    LlamaDeployError,
    SerializationError,
    UnavailableError,
)
from llama_deploy.state_stores.base import Notice, StateStore, StoreTransaction
from llama_deploy.state_stores.direct import pad
from llama_deploy.state_stores.migrations import SCHEMA_REVISION, stored_revision, upgrade_schema
from llama_deploy.state_stores.notices import Mailbox, decode_notice, encode_notice
from llama_deploy.state_stores.queries import Found
from llama_deploy.state_stores.sql import SQLTransaction
from llama_deploy.state_stores.tables import instances, sessions, task_is_running, tasks

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POOL_SIZE: Final = 8
_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 35.0
"""After how long without an answer the connection counts as lost; the server gives up before."""
_PING_SECONDS: Final = 10.0
"""How often the connection for notices is tried, because a dead peer is silent as one without news is."""
_SERVER_SETTINGS: Final = {
    "application_name": "llama_deploy",
    "statement_timeout": "30s",
    # A control plane that stands still in a transaction must not hold up the others.
    "idle_in_transaction_session_timeout": "2s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "jit": "off",
}
_MOST_RUNS: Final = 8
"""How often a transaction is run that fails for the sake of others."""
_RERUN: Final = Backoff(first=0.01, longest=0.5)
_RECONNECT: Final = Backoff(first=0.05, longest=2.0)
# Keys of advisory locks: arbitrary, and the same in every release.
_UPGRADING: Final = 0x6C6C616D6101
_LISTENING: Final = 0x6C6C616D6102
_CHANNEL: Final = "llama_deploy_notices"

# "PostgreSQL Error Codes" in its documentation.
_UNIQUE_VIOLATION: Final = "23505"
_FOR_THE_SAKE_OF_OTHERS: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "0A000",  # a statement that was prepared before the schema was changed
    }
)
_BAD_DATA_CLASS: Final = "22"
_FAULT_OF_OURS_CLASS: Final = "42"
_WRONG_ADDRESS: Final = frozenset({"28000", "28P01", "3D000"})  # role, password, database

_DRIVER_ERRORS: Final = (
    sa_exc.DBAPIError,
    sa_exc.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
)

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
_NOTIFY = sa.select(sa.func.pg_notify(_CHANNEL, sa.bindparam("text", type_=sa.Text)))
_ALONE = sa.select(sa.func.pg_try_advisory_xact_lock(_LISTENING))


class PostgreSQLStateStore(StateStore):
    """A state store in a database of PostgreSQL, 14 or newer.

    It connects when it has to, and again by itself: while the database is away, every call raises
    `UnavailableError`. A transaction whose connection is lost before its commit was asked for is run again.
    """

    shared = True

    def __init__(self, engine: AsyncEngine, *, address: _Address) -> None:
        self._engine = engine
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._address = address
        self._sender = uuid.uuid4().hex[:12]
        self._listeners: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def schema_revision(cls, uri: str) -> str | None:
        address = _Address(uri)
        engine = _engine(address)
        try:
            return await _revision(engine)
        except _DRIVER_ERRORS as exc:
            _raise_ours(exc, address, opening=True)
        finally:
            await engine.dispose()

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Open the store and bring its schema up to date; several may do so at once.

        Args:
            uri: `postgresql://user:password@host:port/database`, with `?sslmode=require` or another mode of
                libpq. What is left out comes from the variables `PGHOST`, `PGUSER` and so on of libpq.

        Raises:
            ConfigError: The address cannot work, the database is not a state store, or its schema is newer
                than this release.
            UnavailableError: The database does not answer.
        """
        address = _Address(uri)
        engine = _engine(address)
        try:
            if await _revision(engine) != SCHEMA_REVISION:
                # Alembic runs one upgrade a process at a time, and others must not make this loop wait.
                await asyncio.to_thread(asyncio.run, _upgrade(address))
        except _DRIVER_ERRORS as exc:
            await engine.dispose()
            _raise_ours(exc, address, opening=True)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, address=address)

    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:
        def run(connection: sa.Connection) -> T:
            if not synced:
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
            return work(_Transaction(connection, lock_rows=True, sender=self._sender))

        return await self._run(self._engine, run)

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:
        def run(connection: sa.Connection) -> T:
            return work(_Transaction(connection, lock_rows=False, sender=self._sender))

        return await self._run(self._reading, run)

    async def has_company(self) -> bool:
        return not await self._run(self._engine, lambda connection: bool(connection.scalar(_ALONE)))

    async def notices(self) -> AsyncGenerator[Notice, None]:
        self._check_open()
        mailbox = Mailbox()
        listening = asyncio.create_task(
            _Listener(self._address, mailbox, sender=self._sender).run(), name="postgresql-notices"
        )
        self._listeners.add(listening)
        try:
            while not listening.done():
                taking = asyncio.ensure_future(mailbox.take())
                try:
                    await asyncio.wait([taking, listening], return_when=asyncio.FIRST_COMPLETED)
                    if taking.done():
                        yield taking.result()
                finally:
                    taking.cancel()
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
        """Run `work` in a transaction, again if the database asks for that."""
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
        for count in range(1, _MOST_RUNS + 1):
            attempt = _Attempt(work)
            try:
                async with engine.connect() as connection:
                    return await connection.run_sync(attempt.run)
            except LlamaDeployError:
                raise
            except _DRIVER_ERRORS as exc:
                again = count < _MOST_RUNS if _is_for_others(exc) else count == 1 and attempt.was_cut_off(exc)
                if not again:
                    _raise_ours(exc, self._address)
                logger.debug("a transaction is run again: %s", _text_of(exc), extra={"action": "run_again"})
            await asyncio.sleep(_RERUN.delay(count))
        raise AssertionError("unreachable")


class _Attempt:
    """One try of a transaction, which remembers whether its commit was asked for."""

    def __init__(self, work: Callable[[sa.Connection], T]) -> None:
        self._work = work
        self._is_ending = False

    def run(self, connection: sa.Connection) -> Any:
        with connection.begin():
            value = self._work(connection)
            self._is_ending = True
        return value

    def was_cut_off(self, exc: BaseException) -> bool:
        """Whether the connection was lost so early that nothing can have been committed."""
        return not self._is_ending and isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated


class _Connection:
    """A connection that fills lists up, so that few texts of statements occur: each is prepared once."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.dialect = connection.dialect

    def execute(self, statement: sa.Executable, parameters: Any, /) -> Found:
        if isinstance(parameters, Mapping):
            parameters = {
                name: pad(value) if isinstance(value, Collection) and not isinstance(value, str) else value
                for name, value in parameters.items()
            }
        return self._connection.execute(statement, parameters)


class _Transaction(SQLTransaction):
    """A transaction that shares its database with those of other control planes."""

    def __init__(self, connection: sa.Connection, *, lock_rows: bool, sender: str) -> None:
        super().__init__(_Connection(connection), lock_rows=lock_rows)
        self._sender = sender

    def lock(
        self,
        *,
        session_ids: Collection[str] = (),
        task_ids: Collection[str] = (),
        instance_ids: Collection[str] = (),
    ) -> None:
        if instance_ids:
            self._connection.execute(_LOCK_INSTANCES, {"ids": instance_ids})
        if instance_ids or (session_ids and task_ids):
            parameters = {"ids": session_ids, "task_ids": task_ids, "instance_ids": instance_ids}
            self._connection.execute(_LOCK_ALL_SESSIONS, parameters)
        elif task_ids:
            self._connection.execute(_LOCK_SESSIONS_OF_TASKS, {"task_ids": task_ids})
        elif session_ids:
            self._connection.execute(_LOCK_SESSIONS, {"ids": session_ids})

    def lock_free(self, task_ids: Collection[str]) -> set[str]:
        if not task_ids:
            return set()
        return {row[0] for row in self._connection.execute(_LOCK_FREE, {"ids": task_ids})}

    def notify(self, notice: Notice) -> None:
        for text in encode_notice(notice, sender=self._sender):
            self._connection.execute(_NOTIFY, {"text": text})


class _Listener:
    """Puts the notices of other control planes into a mailbox, over a connection of its own."""

    def __init__(self, address: _Address, mailbox: Mailbox, *, sender: str) -> None:
        self._address = address
        self._mailbox = mailbox
        self._sender = sender

    async def run(self) -> None:
        """Listen until cancelled."""
        failures = 0
        while True:
            try:
                connection = await asyncpg.connect(**self._address.driver_arguments)
            except _DRIVER_ERRORS as exc:
                failures += 1
                if failures == 1:
                    self._tell("no notices come from %s: %s", exc)
                await asyncio.sleep(_RECONNECT.delay(failures))
                continue
            failures = 0
            try:
                await self._listen(connection)
            except _DRIVER_ERRORS as exc:
                self._tell("notices from %s are lost: %s", exc)
            finally:
                connection.terminate()
            self._mailbox.put(Notice(lost=True))

    async def _listen(self, connection: Any) -> None:
        """Listen until the connection is lost."""
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        await connection.execute(f"SELECT pg_advisory_lock_shared({_LISTENING})")
        await connection.add_listener(_CHANNEL, self._receive)
        self._mailbox.put(Notice(everything=True))
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _PING_SECONDS)
                break
            await connection.execute("SELECT 1", timeout=_PING_SECONDS)

    def _receive(self, _connection: object, _pid: int, _channel: str, text: str) -> None:
        sender, notice = decode_notice(text)
        if sender != self._sender:
            self._mailbox.put(notice)

    def _tell(self, message: str, exc: BaseException) -> None:
        logger.warning(message, self._address.name, _text_of(exc), extra={"action": "notices_lost"})


class _Address:
    """Where the database is, without a way to show the password."""

    def __init__(self, uri: str) -> None:
        try:
            url = sa.make_url(uri)
        except (sa_exc.ArgumentError, ValueError):
            _refuse_address("it cannot be read")  # the cause would show it
        if url.drivername not in {"postgresql", "postgres"}:
            _refuse_address(f"its scheme is {url.drivername!r}")
        if unknown := sorted(url.query.keys() - {"sslmode"}):
            _refuse_address(f"it sets {', '.join(unknown)}, and only sslmode can be set")
        named = {
            "host": url.host,
            "port": url.port,
            "user": url.username,
            "password": url.password,
            "database": url.database,
            "ssl": url.query.get("sslmode"),
        }
        self.name: Final = sa.URL.create(
            "postgresql", host=url.host, port=url.port, database=url.database
        ).render_as_string()
        """For texts that people read."""
        self.driver_arguments: Final[Mapping[str, Any]] = {
            **{key: value for key, value in named.items() if value},
            "timeout": _CONNECT_SECONDS,
            "command_timeout": _ANSWER_SECONDS,
            "server_settings": _SERVER_SETTINGS,
        }


def _refuse_address(reason: str) -> NoReturn:
    raise ConfigError(
        f"this is not the address of a PostgreSQL state store: {reason}; write "
        "postgresql://user:password@host:port/database, with ?sslmode=... if need be"
    ) from None


def _engine(address: _Address, *, answer_seconds: float | None = _ANSWER_SECONDS) -> AsyncEngine:
    arguments = {**address.driver_arguments, "command_timeout": answer_seconds}
    return create_async_engine(
        "postgresql+asyncpg://",
        connect_args={**arguments, "prepared_statement_cache_size": 500},
        pool_size=_POOL_SIZE,
        max_overflow=0,
        pool_use_lifo=True,  # the connection used last has the most statements prepared in the caches
        hide_parameters=True,
    )


async def _revision(engine: AsyncEngine) -> str | None:
    async with engine.connect() as connection:
        return await connection.run_sync(stored_revision)


async def _upgrade(address: _Address) -> None:
    engine = _engine(address, answer_seconds=None)  # a large database takes long, and others wait for it
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("SET LOCAL statement_timeout TO 0")
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADING})")
            await connection.run_sync(upgrade_schema)
    finally:
        await engine.dispose()


def _cause(exc: BaseException) -> BaseException:
    """Return the error of the driver under those of SQLAlchemy."""
    cause: BaseException | None = exc.orig if isinstance(exc, sa_exc.DBAPIError) else exc
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return cause or exc


def _sqlstate(exc: BaseException) -> str:
    return getattr(_cause(exc), "sqlstate", None) or ""


def _is_for_others(exc: BaseException) -> bool:
    return _sqlstate(exc) in _FOR_THE_SAKE_OF_OTHERS


def _text_of(exc: BaseException) -> str:
    """Return what the database says, without the statement and its parameters."""
    cause = _cause(exc)
    return str(cause) or type(cause).__name__


def _raise_ours(exc: BaseException, address: _Address, *, opening: bool = False) -> NoReturn:
    """Raise the driver's error as ours; one that only a fault of this program causes stays as it is."""
    code, text = _sqlstate(exc), _text_of(exc)
    where = f"the state store {address.name}"
    if code == _UNIQUE_VIOLATION:
        raise ConflictError(f"a row with this key exists already in {where}: {text}") from exc
    # The driver refuses some values itself.
    if code.startswith(_BAD_DATA_CLASS) or isinstance(_cause(exc), ValueError):
        raise SerializationError(f"PostgreSQL cannot hold this: {text}") from exc
    if opening and code in _WRONG_ADDRESS:
        raise ConfigError(f"{where} cannot be used: {text}") from exc
    if code.startswith(_FAULT_OF_OURS_CLASS):
        raise exc
    raise UnavailableError(f"{where} does not answer: {text}") from exc
