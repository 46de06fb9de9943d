"""The simple queue's journal: an SQLite file with all that a killed queue server had accepted.

The file holds only messages that are not settled: settling deletes. Many changes share one
commit (`synchronous=FULL`), and a publisher is answered after the commit of its messages. Delivery counts
and delays are not kept: after a restart each message is ready, for the first time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from llama_deploy.concurrency.batching import Batcher
from llama_deploy.concurrency.opened_files import OpenedFiles
from llama_deploy.errors import ConfigError, UnavailableError

logger = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
_MAX_WAITING: Final = 10_000_000
"""The limits of the broker's topics apply first."""
_FREE_PAGES: Final = 1_000
"""Free pages that are kept for what comes next; twice as many go back to the file system."""
_VACUUM_PAGES: Final = 4_000
"""The most pages that go back at once."""

_SCHEMA: Final = """
CREATE TABLE topics (name TEXT PRIMARY KEY, expires_after_seconds REAL) WITHOUT ROWID;
CREATE TABLE groups (topic TEXT NOT NULL, name TEXT NOT NULL, since INTEGER NOT NULL,
                     PRIMARY KEY (topic, name)) WITHOUT ROWID;
CREATE TABLE messages (seq INTEGER PRIMARY KEY, topic TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE settled (seq INTEGER NOT NULL, group_name TEXT NOT NULL,
                      PRIMARY KEY (seq, group_name)) WITHOUT ROWID;
"""


class TopicCreated(NamedTuple):
    """A topic was created, or its time of expiry set."""

    name: str
    expires_after: float | None


class GroupCreated(NamedTuple):
    """A group was created; it gets the messages with a greater number than `since`."""

    topic: str
    name: str
    since: int


class MessageStored(NamedTuple):
    """A message was accepted."""

    seq: int
    topic: str
    message_id: str
    body: bytes


class MessageSettled(NamedTuple):
    """A group is done with a message; `group` None: all are."""

    seq: int
    group: str | None


class TopicDropped(NamedTuple):
    """A topic and all in it is gone."""

    name: str


Change = TopicCreated | GroupCreated | MessageStored | MessageSettled | TopicDropped


@dataclass(frozen=True, slots=True)
class StoredState:
    """The content of a journal."""

    topics: list[TopicCreated]
    groups: list[GroupCreated]
    messages: list[MessageStored]
    """In the order of their numbers."""
    settled: frozenset[tuple[int, str]]
    """Number and group of what some, but not all, groups have settled."""

    @property
    def last_seq(self) -> int:
        """The greatest number that was given and still matters."""
        last = self.messages[-1].seq if self.messages else 0
        return max([last, *(group.since for group in self.groups)])


class Journal:
    """An open journal: `await Journal.open(path)`, then `close` it. One process at a time has it open."""

    def __init__(self, database: _Database, thread: ThreadPoolExecutor) -> None:
        self._database = database
        self._thread = thread
        self._commits: Batcher[_Entry, None] = Batcher(
            self._flush, max_batch=4096, max_waiting=_MAX_WAITING, name="queue journal"
        )
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Journal:
        """Open the file, created with its folder if it does not exist.

        Raises:
            ConfigError: Another process uses it, it is not a journal, or it cannot be opened.
        """
        # SQLite calls block, so they all happen in this one thread.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="queue-journal")
        try:
            database = await _in_thread(thread, lambda: _Database(path))
        except BaseException:
            thread.shutdown()
            raise
        return cls(database, thread)

    async def load(self) -> StoredState:
        """Return what the journal holds."""
        return await _in_thread(self._thread, self._database.load)

    async def commit(self, changes: Sequence[Change]) -> None:
        """Record changes after all earlier ones, and return when the disk has them.

        Raises:
            OSError: The disk refused them.
        """
        await self._commits.submit(_Entry(changes, awaited=True))

    def note(self, changes: Sequence[Change]) -> None:
        """Record changes after all earlier ones, without waiting. A failure is logged."""
        self._commits.submit_nowait(_Entry(changes, awaited=False)).add_done_callback(_log_failure)

    async def check(self) -> None:
        """Write something small, and return when the disk has it.

        Raises:
            UnavailableError: The disk refuses it, or the file was deleted or replaced.
        """
        await _in_thread(self._thread, self._database.touch)

    async def close(self) -> None:
        """Write what waits, then close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        await self._commits.close()
        await _in_thread(self._thread, self._database.close)
        self._thread.shutdown()

    async def _flush(self, entries: Sequence[_Entry]) -> list[None]:
        changes = [change for entry in entries for change in entry.changes]
        # Changes that no caller waits for reach the disk with the next commit that one waits for.
        sync = any(entry.awaited for entry in entries)
        await _in_thread(self._thread, lambda: self._database.write(changes, sync=sync))
        return [None] * len(entries)


@dataclass(frozen=True, slots=True)
class _Entry:
    """Changes that were recorded together."""

    changes: Sequence[Change]
    awaited: bool
    """Whether somebody waits until they are on the disk."""


class _Database:
    """The file, in the journal's thread."""

    def __init__(self, path: Path) -> None:
        self._syncs = True
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(path)
                self._opened = OpenedFiles([path], "the queue journal")
            except BaseException:
                self._connection.close()
                raise
        except (OSError, sqlite3.Error) as exc:
            reason = "another queue server uses it" if "locked" in str(exc) else str(exc)
            raise ConfigError(f"the queue journal {path} cannot be used: {reason}") from exc

    def _prepare(self, path: Path) -> None:
        # In exclusive mode the first transaction locks the file until the process ends, however it ends.
        self._connection.executescript(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;"
            "PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 16777216; BEGIN EXCLUSIVE; COMMIT;"
        )
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            self._connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} is not a queue journal of version {SCHEMA_VERSION}, which this release reads; "
                "name another file as journal_path"
            )

    def load(self) -> StoredState:
        """Read everything."""
        query = self._connection.execute
        return StoredState(
            topics=[TopicCreated(*row) for row in query("SELECT name, expires_after_seconds FROM topics")],
            groups=[GroupCreated(*row) for row in query("SELECT topic, name, since FROM groups")],
            messages=[
                MessageStored(*row) for row in query("SELECT seq, topic, id, body FROM messages ORDER BY seq")
            ],
            settled=frozenset(query("SELECT seq, group_name FROM settled")),
        )

    def write(self, changes: Iterable[Change], *, sync: bool) -> None:
        """Write changes in one transaction; with `sync` they, and all before them, are on the disk then."""
        self._set_syncs(sync)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for kind, same in itertools.groupby(changes, key=type):
                rows = list(same)
                for statement in _STATEMENTS[kind]:
                    self._connection.executemany(statement, rows)
            self._connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._vacuum()

    def _set_syncs(self, sync: bool) -> None:  # noqa: FBT001 - private
        if sync is not self._syncs:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            self._syncs = sync

    def touch(self) -> None:
        """Write a page as it is, in a transaction of its own; raise `UnavailableError` if that fails."""
        self._opened.check()
        try:
            self._set_syncs(True)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.Error as exc:
            raise UnavailableError(f"the queue journal {self._path} cannot be written: {exc}") from exc

    def close(self) -> None:
        """Close the file, which unlocks it."""
        self._connection.close()

    def _vacuum(self) -> None:
        """Give back the room of what was settled, a little at a time."""
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        if free > 2 * _FREE_PAGES:
            pages = min(free - _FREE_PAGES, _VACUUM_PAGES)
            # This frees one page a step, and `execute` takes one step of a statement without columns.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def _log_failure(written: asyncio.Future[None]) -> None:
    if not written.cancelled() and written.exception() is not None:
        logger.error(
            "the queue journal could not be written; after a restart some settled messages come back: %s",
            written.exception(),
            extra={"action": "journal_failure"},
        )


_STATEMENTS: Final[Mapping[type[Change], Sequence[str]]] = {
    TopicCreated: (
        """INSERT INTO topics VALUES (?, ?)
           ON CONFLICT (name) DO UPDATE SET expires_after_seconds = excluded.expires_after_seconds""",
    ),
    GroupCreated: ("INSERT INTO groups VALUES (?, ?, ?)",),
    MessageStored: ("INSERT INTO messages VALUES (?, ?, ?, ?)",),
    # A message that is settled by all groups leaves nothing of those that settled it before.
    MessageSettled: (
        "INSERT INTO settled SELECT ?1, ?2 WHERE ?2 IS NOT NULL",
        "DELETE FROM settled WHERE seq = ?1 AND ?2 IS NULL",
        "DELETE FROM messages WHERE seq = ?1 AND ?2 IS NULL",
    ),
    TopicDropped: (
        "DELETE FROM settled WHERE seq IN (SELECT seq FROM messages WHERE topic = ?)",
        "DELETE FROM messages WHERE topic = ?",
        "DELETE FROM groups WHERE topic = ?",
        "DELETE FROM topics WHERE name = ?",
    ),
}
"""Run with all changes of one kind, each a tuple of the parameters."""
