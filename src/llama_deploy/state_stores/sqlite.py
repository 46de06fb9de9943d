"""The state store in an SQLite file: nothing to install, for one control plane.

One thread writes, two read; each has a connection of its own. A transaction is one hop to a thread, in which
its statements follow one another without another switch. The file is in WAL mode, so that readers and the
writer do not wait for each other, and a commit is synced unless told otherwise (`synchronous=FULL`): what was
acknowledged survives a power failure. A fourth thread moves the log into the database, for which a commit
would take tens of milliseconds. See "Write-Ahead Logging" in SQLite's documentation.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, Self, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from llama_deploy.concurrency.daemon_threads import in_own_thread
from llama_deploy.concurrency.descriptors import free_descriptors
from llama_deploy.concurrency.opened_files import OpenedFiles
from llama_deploy.errors import ConfigError, ConflictError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreSizes, StoreTransaction
from llama_deploy.state_stores.migrations import stored_revision, upgrade_schema
from llama_deploy.state_stores.sql.direct import DirectConnection
from llama_deploy.state_stores.sql.transaction import SQLTransaction
from llama_deploy.state_stores.sqlite_lanes import Lane
from llama_deploy.state_stores.sqlite_lock import FileLock
from llama_deploy.state_stores.sqlite_sizes import measure

T = TypeVar("T")

_READERS = 2
_BUSY_TIMEOUT_SECONDS = 5.0
"""How long a transaction waits for another program, such as a backup, that has locked the file."""
_PRAGMAS = (
    # Lets free pages be returned to the file system. It has to come before the first table.
    "PRAGMA auto_vacuum = INCREMENTAL",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA cache_size = -8192",  # KiB
    # Pages of 4 KiB. A commit moves the log only if the thread for that cannot keep up.
    "PRAGMA wal_autocheckpoint = 16000",
    "PRAGMA journal_size_limit = 67108864",  # bytes that the log keeps after a burst
)
_LOG_PAGES = 4000
"""About how long the log becomes before it is moved into the database. This costs the same page once, however
often it was written; the usual 1,000 cost up to twice as much CPU per row in large transactions."""
_PAGES_OF_TRANSACTION = 10
_PAGES_OF_ROW = 0.5
"""With which the length of the log is estimated: SQLite tells it only when the log is moved."""
_LOG_REST = 100
"""How many pages of the log, written meanwhile, are left to the writer: it moves them in a millisecond."""
_MOVES = 4
"""How often the log is moved for that, as each move leaves less."""
_INCREMENTAL = 2
"""The value of `PRAGMA auto_vacuum` with which free pages can be returned to the file system."""
_SPARE_PAGES = 256
"""How many free pages are kept for new rows; of a large file a share of it."""
_SPARE_SHARE = 20
_DRIVER_ERRORS = (sqlite3.Error, sa_exc.DBAPIError)
_BUGS = (
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sa_exc.ProgrammingError,
    sa_exc.InterfaceError,
)
_NOT_A_USABLE_FILE = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY}
)
_MEANINGS = {
    sqlite3.SQLITE_FULL: "cannot be written, because the disk is full or its quota used up",
    sqlite3.SQLITE_IOERR: "cannot be read or written; check its disk",
    sqlite3.SQLITE_READONLY: "cannot be written; check the rights of the file and its folder",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore a backup",
    sqlite3.SQLITE_BUSY: "is locked by another program, such as a backup",
}
"""What the primary codes of errors mean."""


class SQLiteStateStore(StateStore):
    """A state store in one SQLite file, or in memory.

    Locks on the file and on `<database>.lock` keep a second control plane out; the kernel releases them when
    the process ends, however it ends. If the file is deleted or replaced while it is open, writing fails.

    A caller that is cancelled while it waits does not interrupt its transaction: one that has begun runs to
    its end, one that has not is left out.
    """

    def __init__(self, database: _Database) -> None:
        self._database = database
        self._writer = Lane([database.writer], name="sqlite-writer", after_job=self._look_at_log)
        self._mover = Lane([database.mover], name="sqlite-log") if database.mover else None
        # A database in memory belongs to its one connection.
        self._reader = Lane(database.readers, name="sqlite-reader") if database.readers else self._writer
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def schema_revision(cls, uri: str) -> str | None:
        """Return the revision of the file's schema, also while a control plane works on it."""
        path = database_path(uri)
        return None if path is None else await in_own_thread("sqlite-schema", partial(_schema_revision, path))

    @classmethod
    async def connect(cls, uri: str) -> Self:
        """Open the store and bring its schema up to date.

        Args:
            uri: `sqlite:///` and a path, relative to the working directory unless it starts with another
                slash; missing folders are created. `sqlite:///:memory:` lives until it is closed.

        Raises:
            ConfigError: The address is invalid, the file is not a state store, or its schema is of another
                version.
            StoreLockedError: Another control plane uses the file.
            UnavailableError: The file is locked by another program or cannot be read.
        """
        return await cls.at(database_path(uri))

    @classmethod
    async def at(cls, path: Path | None) -> Self:
        """Open the store in a file, as `connect` does. None: in memory."""
        opening = in_own_thread("sqlite-open", partial(_Database, path))
        try:
            return cls(await asyncio.shield(opening))
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            raise

    async def transact(self, work: Callable[[StoreTransaction], T], *, synced: bool = True) -> T:  # noqa: D102
        self._check_open()
        return await self._writer.run(lambda connection: connection.write(work, synced=synced))

    async def read(self, work: Callable[[StoreTransaction], T]) -> T:  # noqa: D102
        self._check_open()
        return await self._reader.run(lambda connection: connection.read(work))

    @property
    def folder(self) -> Path | None:  # noqa: D102
        path = self._database.path
        return None if path is None else path.parent

    async def check_writable(self) -> None:  # noqa: D102
        self._check_open()
        await self._writer.run(_Connection.touch)

    async def shrink(self, *, max_pages: int) -> bool:  # noqa: D102
        self._check_open()
        return await self._writer.run(lambda connection: connection.shrink(max_pages))

    async def sizes(self, *, exact: bool = False) -> StoreSizes:  # noqa: D102
        self._check_open()
        path = self._database.path
        if path is None:
            return StoreSizes("sqlite")
        return await in_own_thread("sqlite-sizes", partial(measure, path, exact=exact))

    async def close(self) -> None:  # noqa: D102
        if self._closing is None:
            self._closing = in_own_thread("sqlite-close", self._finish)
        was_cancelled = False
        while not self._closing.done():
            try:
                await asyncio.wait({self._closing})
            except asyncio.CancelledError:
                # `asyncio.run` waits for the tasks that it cancels; then the file is closed when it returns.
                was_cancelled = True
        self._closing.result()
        if was_cancelled:
            raise asyncio.CancelledError

    def _check_open(self) -> None:
        if self._closing is not None:
            raise UnavailableError(f"the state store {self._database.name} is closed")

    def _look_at_log(self, writer: _Connection) -> None:
        """Have the log moved if it is long."""
        if self._mover is not None and writer.logged > _LOG_PAGES:
            writer.logged = 0
            self._mover.post(self._move_log)

    def _move_log(self, mover: _Connection) -> None:
        """Move the log into the database while others write.

        They begin a new log only if all of the old one is moved, so the writer moves the last pages.
        """
        for _ in range(_MOVES):
            rest = mover.move_log()
            self._database.sync()  # otherwise the writer would have to
            if rest <= _LOG_REST:
                break
        self._writer.post(_Connection.move_log)

    def _finish(self) -> None:
        if self._mover is not None:
            self._mover.finish()
        self._writer.finish()
        self._reader.finish()
        self._database.close()


class _Connection:
    """One connection, used by one thread at a time.

    SQLAlchemy leaves transactions alone here (`AUTOCOMMIT`). They are begun on the driver, because its
    automatic ones lock for writing only at the first write, when what was read before may be stale.
    """

    def __init__(self, engine: sa.Engine, *, name: str, read_only: bool = False) -> None:
        self._name = name
        self.opened: OpenedFiles | None = None
        """The files that must be in their places to write. None: there are none, or it is too early."""
        self.logged = 0.0
        """About how many pages were written to the log since somebody has set this to 0."""
        self._changes = 0
        self._synced = True
        with _driver_errors_translated(name, opening=True):
            self._statements = engine.connect()
            self._driver = cast("sqlite3.Connection", self._statements.connection.dbapi_connection)
            self._direct = DirectConnection(self._driver, engine.dialect)
            self._rows = SQLTransaction(self._direct, lock_rows=False)
            try:
                for pragma in _PRAGMAS:
                    self._driver.execute(pragma)
                if read_only:
                    self._driver.execute("PRAGMA query_only = ON")
            except BaseException:
                self.close()
                raise

    def write(self, work: Callable[[StoreTransaction], T], *, synced: bool) -> T:
        """Run `work` in a transaction of its own and make it durable."""
        return self._written(lambda: work(self._rows), synced=synced)

    def touch(self) -> None:
        """Write a page as it is, and make that durable."""
        self._written(self._rewrite_page, synced=True)

    def read(self, work: Callable[[StoreTransaction], T]) -> T:
        """Run `work` on a snapshot."""
        return self._within(lambda: work(self._rows), "BEGIN", end="ROLLBACK")

    def shrink(self, max_pages: int) -> bool:
        """Return free pages to the file system if many are free; return whether there are more."""
        with _driver_errors_translated(self._name):
            free = _pragma(self._driver, "freelist_count")
            spare = max(_SPARE_PAGES, _pragma(self._driver, "page_count") // _SPARE_SHARE)
            if free <= spare or _pragma(self._driver, "auto_vacuum") != _INCREMENTAL:
                return False
            self._prepare_writing(synced=False)
            # `execute` would free one page only: it ends a statement without columns after its first row.
            self._driver.executescript(f"PRAGMA incremental_vacuum({min(max_pages, free - spare)})")
            self.logged += max_pages
        return free - max_pages > spare

    def move_log(self) -> int:
        """Move into the database what others do not read from the log; return how many pages are left.

        An error is left to the next transaction that writes, which meets it too.
        """
        try:
            ((_, pages, moved),) = self._driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:
            return 0
        return int(pages) - int(moved)

    def upgrade(self) -> None:
        """Bring the schema up to date, all or nothing."""
        upgrade = partial(upgrade_schema, self._statements, name=self._name)
        self._within(upgrade, "BEGIN IMMEDIATE", end="COMMIT", opening=True)

    def close(self) -> None:
        self._statements.close()

    def _rewrite_page(self) -> None:
        ((version,),) = self._driver.execute("PRAGMA user_version").fetchall()
        self._driver.execute(f"PRAGMA user_version = {version}")

    def _written(self, work: Callable[[], T], *, synced: bool) -> T:
        self._prepare_writing(synced=synced)
        value = self._within(work, "BEGIN IMMEDIATE", end="COMMIT")
        changes = self._driver.total_changes
        self.logged += _PAGES_OF_TRANSACTION + _PAGES_OF_ROW * (changes - self._changes)
        self._changes = changes
        return value

    def _prepare_writing(self, *, synced: bool) -> None:
        if synced and self.opened is not None:
            self.opened.check()  # what is not synced may be lost
        if synced is not self._synced:
            # In WAL mode NORMAL leaves out the sync at a commit; see "PRAGMA synchronous" of SQLite.
            self._driver.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            self._synced = synced

    def _within(self, work: Callable[[], T], begin: str, *, end: str, opening: bool = False) -> T:
        """Run `work` in a transaction. Not a context manager: those cost as much as a short statement."""
        driver = self._driver
        try:
            driver.execute(begin)
            try:
                value = work()
                driver.execute(end)
            except BaseException:
                if driver.in_transaction:
                    driver.execute("ROLLBACK")
                raise
        except _DRIVER_ERRORS as exc:
            _raise_as_ours(exc, self._name, opening=opening)
        return value


class _Database:
    """The open file: its lock and its connections."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.name = ":memory:" if path is None else str(path)
        self._lock = None if path is None else FileLock(path)
        self._opened: list[_Connection] = []
        self._descriptor: int | None = None
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=self.name),
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"check_same_thread": False, "timeout": _BUSY_TIMEOUT_SECONDS},
        )
        try:
            self.writer = self._connection()
            self.writer.upgrade()
            readers = 0 if path is None else _READERS
            self.readers = [self._connection(read_only=True) for _ in range(readers)]
            self.mover = None if path is None else self._connection()
            if path is not None:
                files = [path.with_name(path.name + ending) for ending in ("", "-wal", "-shm")]
                self.writer.opened = OpenedFiles(files, "the state store")
                self._descriptor = os.open(path, os.O_RDWR)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close everything and release the lock. Idempotent."""
        while self._opened:
            # The writer last: as the only one left, it moves the log into the database.
            self._opened.pop().close()
        if self._descriptor is not None:
            # Only now: closing any descriptor of a file gives up all locks of the process on it.
            os.close(self._descriptor)
            self._descriptor = None
        if self._lock is not None:
            self._lock.release()

    def sync(self) -> None:
        """Have the disk write what was moved into the database: SQLite does so only when all of a log is."""
        if self._descriptor is not None:
            with suppress(OSError):  # which the next transaction meets too
                os.fsync(self._descriptor)

    def _connection(self, *, read_only: bool = False) -> _Connection:
        connection = _Connection(self._engine, name=self.name, read_only=read_only)
        self._opened.append(connection)
        return connection


def _pragma(driver: sqlite3.Connection, name: str) -> int:
    ((value,),) = driver.execute(f"PRAGMA {name}").fetchall()
    return int(value)


def database_path(uri: str) -> Path | None:
    """Return the database's absolute path, or None for one in memory."""
    try:
        url = sa.make_url(uri)
    except (sa_exc.ArgumentError, ValueError):
        _refuse_address("it cannot be read")  # the cause would show it
    if url.drivername != "sqlite":
        _refuse_address("its scheme is not sqlite")
    if url.username or url.password or url.host:
        _refuse_address("it names a user, a password or a host")
    if "?" in uri:
        _refuse_address("it has a query, and nothing can be set; write a ? of the path as %3F")
    if not url.database or "\0" in url.database:
        _refuse_address("it does not name a file")
    return None if url.database == ":memory:" else Path(url.database).resolve()


def _refuse_address(reason: str) -> NoReturn:
    """Raise an error without the address: it may hold a password."""
    raise ConfigError(
        f"this is not the address of an SQLite state store: {reason}; write sqlite:///relative/path.db, "
        "sqlite:////absolute/path.db or sqlite:///:memory:"
    ) from None


def _schema_revision(path: Path) -> str | None:
    """Return the schema revision of a file, None if the file or the schema does not exist."""
    if not path.exists():
        return None
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.NullPool)
    with _driver_errors_translated(str(path), opening=True), engine.connect() as connection:
        return stored_revision(connection)


@contextmanager
def _driver_errors_translated(name: str, *, opening: bool = False) -> Iterator[None]:
    """Raise the driver's errors as ours."""
    try:
        yield
    except _DRIVER_ERRORS as exc:
        _raise_as_ours(exc, name, opening=opening)


def _raise_as_ours(exc: Exception, name: str, *, opening: bool) -> NoReturn:
    """Raise an error of the driver as ours. One that only a bug of this program causes stays as it is."""
    if isinstance(exc, sqlite3.IntegrityError):
        raise ConflictError(f"a row with this key exists already in the state store {name}: {exc}") from exc
    if isinstance(exc, _BUGS):
        raise exc
    cause = exc.orig if isinstance(exc, sa_exc.DBAPIError) else exc
    # The low byte is the primary code; see "Result and Error Codes" in SQLite's documentation.
    # A file that was good at the start may be good again; until then nothing must be given up.
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if opening and code in _NOT_A_USABLE_FILE:
        raise ConfigError(f"the state store {name} cannot be used: {cause}") from exc
    raise UnavailableError(f"the state store {name} {_meaning(code)}: {cause}") from exc


def _meaning(code: int) -> str:
    """Return what a primary error code means, for a sentence."""
    free = free_descriptors() if code == sqlite3.SQLITE_CANTOPEN else None
    if free is not None and free[0] <= 0:
        return f"needs a file descriptor, and this process has used all {free[1]} (see ulimit -n)"
    return _MEANINGS.get(code, "does not answer")
