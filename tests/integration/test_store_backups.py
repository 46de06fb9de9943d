"""Backups of an SQLite store while a control plane works on it, and stores that are put in their places."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.maintenance.restored_tasks import take_back_running
from llama_deploy.control_plane.maintenance.storage import Storage
from llama_deploy.control_plane.storage.removed_ids import KnownRemovals
from llama_deploy.errors import ConfigError, StoreLockedError, UnavailableError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.state_stores.sqlite_backup import PARTIAL, back_up, restore, vacuum
from llama_deploy.testing.records import a_session, a_task, an_instance
from llama_deploy.types import TaskStatus
from llama_deploy.types.retention import PurgeRequest

CONFIG = ControlPlaneConfig()


def now() -> datetime:
    return datetime.now(UTC)


def nothing(_copy: Path) -> None:
    """The copy stays as it is."""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def connect(path: Path) -> SQLiteStateStore:
    return await SQLiteStateStore.connect(f"sqlite:///{path}")


def names_in(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def content(path: Path) -> bytes:
    return path.read_bytes()


def is_file(path: Path) -> bool:
    return path.exists()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50_000] = os.urandom(50_000)
    path.write_bytes(data)


def write_text(path: Path) -> None:
    path.write_text("no database" * 100)


def ended(first: int, count: int, tx: StoreTransaction) -> None:
    at = now() - timedelta(days=31)
    changes: dict[str, Any] = {"status_changed_at": at, "finished_at": at, "stream_length": 1}
    names = [f"t{n:05}" for n in range(first, first + count)]
    tx.tasks.insert([a_task(name, status=TaskStatus.SUCCEEDED, **changes) for name in names])
    tx.events.insert([EventRecord(name, 0, "E", f'"{"x" * 500}"', terminal=True) for name in names])


async def ids_of(path: Path) -> tuple[set[str], set[str]]:
    """Return the ids of the tasks in a file, and of those that were removed."""

    def look(tx: StoreTransaction) -> tuple[set[str], set[str]]:
        names = [f"t{n:05}" for n in range(5000)]
        return set(tx.tasks.load(names)), set(tx.retention.removed(names))

    async with await connect(path) as store:
        return await store.read(look)


async def test_a_backup_during_writes_and_a_purge_is_one_moment(database: Path, tmp_path: Path) -> None:
    backups = [tmp_path / f"backup-{n}.db" for n in range(3)]
    async with await connect(database) as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await store.transact(partial(ended, 0, 2000))
        storage = Storage(store, CONFIG, removals=KnownRemovals(), clock=now)
        purging = asyncio.create_task(storage.purge(PurgeRequest(older_than_seconds=3600, limit=10_000)))
        for backup in backups:
            assert await asyncio.to_thread(back_up, database, backup) == len(content(backup))
        assert (await purging).removed == 2000
    for backup in backups:
        tasks, removed = await ids_of(backup)
        assert tasks | removed == {f"t{n:05}" for n in range(2000)}
        assert not tasks & removed
    assert names_in(tmp_path, f"*{PARTIAL}*") == []
    assert (await ids_of(database))[0] == set()


async def test_other_users_of_the_machine_cannot_read_a_store_or_its_backup(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    database, backup, restored = (folder / name for name in ("state.db", "backup.db", "restored.db"))
    before = os.umask(0)
    try:
        async with await connect(database) as store:
            await store.transact(lambda tx: tx.sessions.insert([a_session("s")]))
            assert names_in(folder, "state.db-*")
            await asyncio.to_thread(back_up, database, backup)
            await asyncio.to_thread(restore, backup, restored, prepare=nothing)
            modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}, modes


async def test_a_backup_is_one_file_and_overwrites_nothing(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with await connect(database) as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await asyncio.to_thread(back_up, database, backup)
        assert not names_in(tmp_path, "backup.db-*")
        with pytest.raises(ConfigError, match="exists already"):
            await asyncio.to_thread(back_up, database, backup)
        with pytest.raises(ConfigError, match="no folder"):
            await asyncio.to_thread(back_up, database, tmp_path / "none" / "backup.db")
    with pytest.raises(ConfigError, match="no file"):
        back_up(tmp_path / "unknown.db", tmp_path / "other.db")
    write_text(tmp_path / "text")
    with pytest.raises(ConfigError, match="not a state store"):
        back_up(tmp_path / "text", tmp_path / "other.db")
    with closing(sqlite3.connect(tmp_path / "other program.db")) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(ConfigError, match="not a state store"):
        back_up(tmp_path / "other program.db", tmp_path / "other.db")
    assert not is_file(tmp_path / "other.db")


async def test_a_restored_store_has_what_the_backup_had(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with await connect(database) as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session("before")]))
        await asyncio.to_thread(back_up, database, backup)
        await store.transact(lambda tx: tx.sessions.insert([a_session("after")]))
        with pytest.raises(StoreLockedError):
            restore(backup, database, prepare=nothing, replace=True)
    with pytest.raises(ConfigError, match="--replace"):
        restore(backup, database, prepare=nothing)
    kept = restore(backup, database, prepare=nothing, replace=True)
    assert kept is not None

    async def sessions(path: Path) -> list[str]:
        async with await connect(path) as store:
            return [each.session_id for each in await store.read(lambda tx: tx.sessions.page())]

    assert await sessions(database) == ["before"]
    assert await sessions(kept) == ["after", "before"]
    assert restore(backup, tmp_path / "elsewhere.db", prepare=nothing) is None
    assert await sessions(tmp_path / "elsewhere.db") == ["before"]


async def test_a_damaged_backup_is_refused_and_nothing_changes(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with await connect(database) as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await store.transact(partial(ended, 0, 500))
        await asyncio.to_thread(back_up, database, backup)
    damage(backup)
    before = content(database)
    with pytest.raises((ConfigError, UnavailableError)):
        restore(backup, database, prepare=nothing, replace=True)
    assert content(database) == before
    with pytest.raises((ConfigError, UnavailableError)):
        restore(backup, tmp_path / "new.db", prepare=nothing)
    assert not is_file(tmp_path / "new.db")


async def test_a_restore_that_fails_leaves_the_store_as_it_was(database: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.db"
    async with await connect(database) as store:
        await asyncio.to_thread(back_up, database, backup)
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))

    def fail(_copy: Path) -> None:
        raise UnavailableError("the disk is full")

    with pytest.raises(UnavailableError, match="disk is full"):
        restore(backup, database, prepare=fail, replace=True)
    async with await connect(database) as store:
        assert await store.read(lambda tx: tx.sessions.page()) == [a_session("s1")]
    assert names_in(tmp_path) == ["backup.db", "state.db", "state.db.lock"]


async def test_what_was_running_gets_its_next_attempt_and_is_not_charged(database: Path) -> None:
    running = a_task(
        "running",
        status=TaskStatus.RUNNING,
        instance_id="i1",
        token="secret",
        attempt=3,
        claimed_at=now(),
        stream_length=1,
        attempt_events=1,
        repeats_from=0,
    )
    cancelled = running._replace(task_id="cancelled", cancel_requested=True)

    def fill(tx: StoreTransaction) -> None:
        tx.sessions.insert([a_session("s1")])
        tx.instances.put([an_instance("i1"), an_instance("i2")])
        tx.tasks.insert([running, cancelled, a_task("parked", status=TaskStatus.WAITING)])

    async def take_back(store: StateStore) -> int:
        return await take_back_running(store, CONFIG, clock=now)

    async with await connect(database) as store:
        await store.transact(fill)
        assert await take_back(store) == 2
        assert await store.read(lambda tx: tx.instances.load()) == []
        tasks = await store.read(lambda tx: tx.tasks.load(["running", "cancelled", "parked"]))
        task = tasks["running"]
        assert (task.status, task.attempt, task.token, task.losses, task.deaths) == (
            TaskStatus.QUEUED,
            4,
            None,
            0,
            0,
        )
        assert tasks["cancelled"].status is TaskStatus.CANCELLED
        assert tasks["parked"].status is TaskStatus.WAITING
        (message,) = (await store.read(lambda tx: tx.outbox.load())).values()
        assert message.topic == "llama_deploy.greeter"
        assert await take_back(store) == 0


async def test_a_vacuum_needs_the_file_for_itself_and_makes_it_small(database: Path) -> None:
    async with await connect(database) as store:
        await store.transact(lambda tx: tx.sessions.insert([a_session("s1")]))
        await store.transact(partial(ended, 0, 3000))
        with pytest.raises(StoreLockedError):
            vacuum(database)
        await store.transact(lambda tx: tx.sessions.delete(["s1"]))
    before, after = vacuum(database)
    assert after < before / 3
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


BACK_UP = """
import sys
from pathlib import Path
from llama_deploy.state_stores import sqlite_backup

check = sqlite_backup._check_whole
def checked(path):
    print("copied", flush=True)
    sys.stdin.read()
    check(path)

sqlite_backup._check_whole = checked
sqlite_backup.back_up(Path(sys.argv[1]), Path(sys.argv[2]))
"""


async def test_a_backup_that_is_killed_leaves_no_file_that_looks_like_one(
    database: Path, tmp_path: Path
) -> None:
    backup = tmp_path / "backup.db"
    async with await connect(database):
        await asyncio.to_thread(kill_back_up, database, backup)
        assert names_in(tmp_path, f"*{PARTIAL}")
        assert not is_file(backup)
        await asyncio.to_thread(back_up, database, backup)
    assert is_file(backup)
    assert not names_in(tmp_path, f"*{PARTIAL}*")


def kill_back_up(database: Path, backup: Path) -> None:
    arguments = [sys.executable, "-c", BACK_UP, str(database), str(backup)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "copied\n"
        process.send_signal(signal.SIGKILL)
