from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql

from llama_deploy.errors import ConfigError, StoreLockedError, UnavailableError
from llama_deploy.state_stores import migrations, sqlite
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.event_packs import packed
from llama_deploy.state_stores.migrations import SCHEMA_REVISION
from llama_deploy.state_stores.records import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
)
from llama_deploy.state_stores.sql import task_repositories
from llama_deploy.state_stores.sql.tables import metadata
from llama_deploy.state_stores.sql.transaction import SQLTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.records import NOW, a_session, a_task, an_instance
from llama_deploy.types import TaskStatus
from tests.full_disks import no_disk_writes

PATIENCE_SECONDS = 30.0

HOLDER = """
import asyncio, sys
from llama_deploy.state_stores.sqlite import SQLiteStateStore

async def main():
    await SQLiteStateStore.connect(sys.argv[1])
    print("open", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

WRITER = """
import asyncio, sys
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import a_session, a_task

async def write(store, lane):
    for n in range(1_000_000):
        name = f"{lane}-{n}"
        def work(tx):
            tx.sessions.insert([a_session(name)])
            tx.tasks.insert([a_task(name, session_id=name)])
        await store.transact(work)
        print(name, flush=True)

async def main():
    store = await SQLiteStateStore.connect(sys.argv[1])
    await asyncio.gather(*(write(store, lane) for lane in range(8)))

asyncio.run(main())
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "control_plane.db"


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
async def store(uri: str) -> AsyncIterator[SQLiteStateStore]:
    async with await SQLiteStateStore.connect(uri) as store:
        yield store


@contextmanager
def running(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        assert process.stdout is not None
        process.stdout.close()


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), PATIENCE_SECONDS)


# -- one control plane


async def test_a_second_store_on_the_same_file_is_refused(store: SQLiteStateStore, uri: str) -> None:
    with pytest.raises(StoreLockedError) as refused:
        await SQLiteStateStore.connect(uri)
    assert str(os.getpid()) in str(refused.value)
    assert (refused.value.pid, refused.value.path) == (os.getpid(), uri.removeprefix("sqlite:///"))
    await store.close()
    async with await SQLiteStateStore.connect(uri):
        pass


async def test_a_second_process_is_refused_until_the_first_is_killed(uri: str, database: Path) -> None:
    with running(HOLDER, uri) as holder:
        assert await line_of(holder) == "open\n"
        with pytest.raises(StoreLockedError) as refused:
            await SQLiteStateStore.connect(uri)
        for fact in (str(holder.pid), str(database), "stop that one", "another file"):
            assert fact in str(refused.value)
        holder.kill()
        holder.wait(PATIENCE_SECONDS)
        async with await SQLiteStateStore.connect(uri) as store:
            assert await store.read(lambda tx: tx.sessions.page()) == []


async def test_another_name_of_the_same_file_is_refused(
    store: SQLiteStateStore, database: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(database)
    with pytest.raises(StoreLockedError):
        await SQLiteStateStore.connect(f"sqlite:///{link}")


async def test_a_connect_that_is_cancelled_leaves_no_lock(uri: str) -> None:
    connecting = asyncio.create_task(SQLiteStateStore.connect(uri))
    await asyncio.sleep(0)  # let it begin
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    async with await SQLiteStateStore.connect(uri):
        pass


@pytest.fixture
def not_a_database(database: Path) -> Path:
    database.write_text("this is no database, but it is long enough to be read as the header of one" * 20)
    return database


async def test_a_connect_that_fails_leaves_no_lock(uri: str, not_a_database: Path) -> None:
    with pytest.raises(ConfigError, match="not a database"):
        await SQLiteStateStore.connect(uri)
    os.truncate(not_a_database, 0)
    async with await SQLiteStateStore.connect(uri):
        pass


# -- durability


async def test_kill_9_keeps_every_acknowledged_transaction(uri: str) -> None:
    with running(WRITER, uri) as writer:
        acknowledged = [(await line_of(writer)).strip() for _ in range(300)]
        writer.kill()
        assert writer.stdout is not None
        rest, _, _ = writer.stdout.read().rpartition("\n")
        acknowledged += rest.split()
        writer.wait(PATIENCE_SECONDS)
    assert all(acknowledged)

    def look(tx: StoreTransaction) -> tuple[set[str], set[str]]:
        sessions = {session.session_id for session in tx.sessions.page(limit=10**9)}
        return sessions, {task.task_id for task in tx.tasks.of_sessions(sessions)}

    async with await SQLiteStateStore.connect(uri) as store:
        sessions, tasks = await store.read(look)
    assert set(acknowledged) <= sessions
    assert sessions == tasks


@pytest.mark.usefixtures("store")
async def test_commits_go_to_a_write_ahead_log(database: Path) -> None:
    with closing(sqlite3.connect(database)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# -- readers and the writer


async def test_reading_work_cannot_write(store: SQLiteStateStore) -> None:
    with pytest.raises(UnavailableError, match="readonly"):
        await store.read(lambda tx: tx.sessions.insert([a_session()]))
    assert await store.read(lambda tx: tx.sessions.page()) == []


async def test_a_database_that_stays_locked_is_unavailable(
    uri: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_SECONDS", 0.01)
    async with await SQLiteStateStore.connect(uri) as store:
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            await store.transact(lambda tx: tx.sessions.page())
        other.close()
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))


async def test_a_cancelled_transaction_that_waits_is_left_out(store: SQLiteStateStore) -> None:
    go_on = threading.Event()

    def first(tx: StoreTransaction) -> None:
        assert go_on.wait(PATIENCE_SECONDS)
        tx.sessions.insert([a_session("s1")])

    running_first = asyncio.create_task(store.transact(first))
    waiting = asyncio.create_task(store.transact(lambda tx: tx.sessions.insert([a_session("s2")])))
    await asyncio.sleep(0)  # let both be handed over
    waiting.cancel()
    await asyncio.wait([waiting])
    go_on.set()
    await running_first
    assert await store.read(lambda tx: tx.sessions.page()) == [a_session("s1")]


# -- the schema


def schema_of(connection: sa.Connection) -> dict[str, object]:
    """Return what SQLite knows of the schema, without the choices of layout such as the order of columns."""

    def ask(question: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in connection.execute(sa.text(question))]

    schema: dict[str, object] = {
        name: " ".join(statement.split())
        for name, statement in ask("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql != ''")
    }
    for _, name, kind, _, without_rowid, _ in ask("PRAGMA table_list"):
        if kind == "table" and not name.startswith(("alembic", "sqlite")):
            columns = sorted(column[1:] for column in ask(f"PRAGMA table_info({name})"))
            unique = sorted(index[3:] for index in ask(f"PRAGMA index_list({name})") if index[3] != "c")
            schema[name] = (without_rowid, columns, unique)
    return schema


async def test_the_migrations_lead_to_the_tables(store: SQLiteStateStore, database: Path) -> None:
    await store.close()
    migrated = sa.create_engine(f"sqlite:///{database}", poolclass=sa.NullPool)
    declared = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    metadata.create_all(declared)
    with migrated.connect() as connection, declared.connect() as wanted:
        # Only PostgreSQL has the index of prefixes, and Alembic does not see that.
        opts = {"compare_type": True, "include_object": lambda _, name, *__: name != "ix_tasks_list_id"}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, metadata) == []
        # Alembic does not compare the conditions of partial indexes, nor `WITHOUT ROWID`.
        assert schema_of(connection) == schema_of(wanted)
    declared.dispose()


def test_the_schema_revision_is_the_last_step() -> None:
    assert ScriptDirectory(str(Path(migrations.__file__).parent)).get_heads() == [SCHEMA_REVISION]


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("0001", "before the first release"),
        ("0003", "before the first release"),
        ("9999", "newer release"),
        ("later", "newer release"),
    ],
)
async def test_the_schema_of_another_version_is_refused(
    store: SQLiteStateStore, uri: str, database: Path, revision: str, words: str
) -> None:
    await store.close()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    connection.close()
    with pytest.raises(ConfigError) as refused:
        await SQLiteStateStore.connect(uri)
    for fact in (words, revision, str(database), "set state_store_uri"):
        assert fact in str(refused.value)


async def test_tables_without_a_schema_revision_are_refused(uri: str, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE tasks (title TEXT)")
    connection.close()
    with pytest.raises(ConfigError) as refused:
        await SQLiteStateStore.connect(uri)
    for fact in ("not a state store", "tasks", str(database), "set state_store_uri"):
        assert fact in str(refused.value)


async def test_free_pages_of_a_new_file_can_be_returned(store: SQLiteStateStore, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)  # INCREMENTAL
    connection.close()


async def test_an_upgrade_that_fails_leaves_nothing(
    uri: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = migrations.upgrade_schema

    def fail_at_the_end(connection: sa.Connection, *, name: str) -> None:
        upgrade(connection, name=name)
        raise InterruptedError

    monkeypatch.setattr(sqlite, "upgrade_schema", fail_at_the_end)
    with pytest.raises(InterruptedError):
        await SQLiteStateStore.connect(uri)
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_opening_an_upgraded_store_does_not_import_alembic(uri: str) -> None:
    program = """
import asyncio, sys
from llama_deploy.state_stores.sqlite import SQLiteStateStore

async def main():
    async with await SQLiteStateStore.connect(sys.argv[1]):
        print("alembic" in sys.modules)

asyncio.run(main())
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, uri], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        for _ in range(2)
    ]
    assert outputs == ["True\n", "False\n"]


# -- the cost of a query does not grow with the tasks that have ended


def use_everything(tx: StoreTransaction) -> None:
    task = a_task(status=TaskStatus.RUNNING, instance_id="i1")
    tx.sessions.insert([a_session()])
    tx.sessions.update([a_session()])
    tx.sessions.load(["s1", "s2"])
    tx.sessions.page(after="s")
    tx.tasks.insert([task])
    tx.tasks.update([task])
    tx.tasks.change([(task, task._replace(attempt=2))])
    tx.tasks.load(["t1", "t2"])
    tx.tasks.of_sessions(["s1", "s2"])
    tx.tasks.of_sessions(["s1", "s2"], open_only=True)
    tx.tasks.of_instances(["i1", "i2"])
    tx.tasks.queued()
    tx.tasks.suspects()
    tx.tasks.queued_since()
    tx.tasks.queued(due_before=NOW)
    tx.tasks.sleeping()
    tx.tasks.sleeping(due_before=NOW)
    tx.events.insert([EventRecord("t1", 0, "E", "{}")])
    tx.events.load("t1")
    tx.inbox.insert([InboxRecord("t1", 1, "{}", "key")])
    tx.inbox.load(["t1", "t2"])
    tx.inbox.known_keys([("t1", "key"), ("t2", "key")])
    tx.inbox.consume([("t1", 1)])
    tx.runs.put([RunHeadRecord("t1", "f", "1")])
    tx.runs.load(["t1", "t2"])
    tx.runs.insert_journal([JournalRecord("t1", 0, "{}")])
    tx.runs.trim_journal({"t1": 1})
    tx.runs.load_journal(["t1", "t2"])
    tx.runs.delete(["t1", "t2"])
    tx.outbox.insert([OutboxRecord("m1", "topic", "{}")])
    tx.outbox.load()
    tx.outbox.take(now=NOW, until=NOW)
    tx.outbox.delete(["m1", "m2"])
    tx.instances.put([an_instance()])
    tx.instances.load(service_names=["a", "b"])
    tx.instances.load(instance_ids=["i1", "i2"])
    tx.services.delete(["a", "b"])
    tx.instances.delete(["i1", "i2"])
    tx.sessions.delete(["s1", "s2"])


def explain(database: Path, statement: str) -> list[str]:
    """Return how SQLite executes a statement."""
    with closing(sqlite3.connect(database)) as other:
        return [row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {statement}")]


async def test_every_query_has_its_index(store: SQLiteStateStore, database: Path) -> None:
    seen: list[str] = []
    driver = store._database.writer._driver
    driver.set_trace_callback(seen.append)
    await store.transact(use_everything)
    driver.set_trace_callback(None)
    expected = {
        "status = 'queued' AND tasks.redispatch_at": "ix_tasks_queued",
        "tasks.status = 'queued' ORDER": "ix_tasks_queued",
        "tasks.deaths >= 2": "ix_tasks_suspects",
        "tasks.status = 'running'": "ix_tasks_instance_running",
        "status = 'waiting' AND": "ix_tasks_waiting",
        "finished_at IS NULL": "(session_id=? AND finished_at=?)",
        "idempotency_key IN": "ix_inbox_key (task_id=? AND idempotency_key=?)",
    }
    assert len(seen) > 35
    for condition in expected:
        assert any(condition in statement for statement in seen)
    for statement in seen:
        plan = "\n".join(explain(database, statement))
        # How long tasks are queued is read for the metrics only.
        assert "TEMP B-TREE" not in plan or "min(tasks.status_changed_at)" in statement, (statement, plan)
        for line in plan.splitlines():
            walks_in_order = "USING INDEX ix_tasks_queued" in line or line == "SCAN outbox"
            walks_in_order |= "USING INDEX ix_tasks_waiting" in line
            walks_in_order |= "USING INDEX ix_tasks_suspects" in line
            assert not line.startswith("SCAN") or walks_in_order, (statement, plan)
        for condition, index in expected.items():
            assert condition not in statement or index in plan, (statement, plan)


def use_packs_and_feeds(tx: StoreTransaction) -> None:
    tx.events.insert([EventRecord("t1", n, "E", "{}") for n in range(3)])
    tx.events.put_packs(packed(tx.events.loose("t1")))
    tx.events.last_pack("t1")
    tx.events.load("t1", max_bytes=1)
    for status in TaskStatus:
        tx.feeds.changed_since(status, NOW, after="t1")
    tx.feeds.load(["t1", "t2"])


async def test_packs_and_what_feeds_read_have_their_indexes(store: SQLiteStateStore, database: Path) -> None:
    seen: list[str] = []
    driver = store._database.writer._driver
    driver.set_trace_callback(seen.append)
    await store.transact(use_packs_and_feeds)
    driver.set_trace_callback(None)
    plans = {statement: explain(database, statement) for statement in seen}
    assert sum("event_packs" in statement for statement in plans) >= 3
    for statement, plan in plans.items():
        # Of tasks that are open, those with the status are looked at.
        assert not [line for line in plan if line.startswith("SCAN") and "USING INDEX ix_tasks_" not in line]
        if any(f"status = '{status}'" in statement for status in TaskStatus if status.is_terminal):
            assert "USING INDEX ix_tasks_ended (status=? AND status_changed_at>?)" in plan[0]


async def test_what_suspects_need_is_found_by_their_index(store: SQLiteStateStore, database: Path) -> None:
    seen: list[str] = []
    driver = store._database.writer._driver
    driver.set_trace_callback(seen.append)
    await store.transact(lambda tx: tx.runs.suspects(["a", "b"], living=[("a", "v")]))
    driver.set_trace_callback(None)
    (statement,) = [each for each in seen if each.startswith("SELECT")]
    plan = explain(database, statement)
    assert any("USING INDEX ix_tasks_suspects" in line for line in plan), plan
    assert not any("ix_tasks_queued" in line for line in plan), plan


async def test_no_statement_takes_more_ids_than_databases_allow(store: SQLiteStateStore) -> None:
    seen: list[str] = []
    driver = store._database.writer._driver
    driver.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    driver.set_trace_callback(seen.append)
    ids = [str(n) for n in range(1200)]
    await store.transact(lambda tx: (tx.tasks.load(ids * 2), tx.outbox.delete(ids)))
    assert len(seen) == len(["BEGIN", *["SELECT", "DELETE"] * 3, "COMMIT"])


async def test_lists_of_many_lengths_need_few_statements(store: SQLiteStateStore) -> None:
    connection = store._database.writer._direct

    def load(tx: StoreTransaction) -> None:
        for length in range(1, 130):
            tx.tasks.load([str(n) for n in range(length)])

    await store.transact(load)
    assert len(connection._prepared) == len([1, 2, 4, 8, 16, 32, 64, 128, 256])


async def test_the_log_is_moved_and_begun_again_although_no_commit_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pragmas = [each for each in sqlite._PRAGMAS if "autocheckpoint" not in each]
    monkeypatch.setattr(sqlite, "_PRAGMAS", (*pragmas, "PRAGMA wal_autocheckpoint = 0"))
    monkeypatch.setattr(sqlite, "_LOG_PAGES", 200)
    log = tmp_path / "store.db-wal"

    def work(tx: StoreTransaction, number: int) -> None:
        tx.events.insert([EventRecord(f"t{number:06}", n, "E", "x" * 4000) for n in range(20)])

    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/store.db") as store:
        sizes: list[int] = []
        while len(sizes) < 50 or sizes[-1] > sizes[-50]:
            assert len(sizes) < 5000, "the log only grows"
            await store.transact(partial(work, number=len(sizes)), synced=False)
            sizes.append(log.stat().st_size)
        events = await store.read(lambda tx: [len(tx.events.load(f"t{n:06}")) for n in range(len(sizes))])
    assert set(events) == {20}


@pytest.mark.parametrize("turns", range(1, 6))
def test_a_store_is_closed_although_its_program_ends_meanwhile(tmp_path: Path, turns: int) -> None:
    """`asyncio.run` cancels the tasks that the program leaves, whether they have begun or not."""

    async def leave_while_it_closes() -> None:
        store = await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/store.db")
        left.append(asyncio.create_task(store.close()))
        for _ in range(turns):
            await asyncio.sleep(0)

    left: list[asyncio.Task[None]] = []
    asyncio.run(leave_while_it_closes())
    assert not (tmp_path / "store.db-wal").exists()


def test_a_store_that_nobody_closed_lets_the_process_end(uri: str) -> None:
    program = f"""
import asyncio
from llama_deploy.state_stores.sqlite import SQLiteStateStore
asyncio.run(SQLiteStateStore.connect({uri!r}))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)


def test_rows_that_are_read_are_locked_where_there_are_row_locks() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    assert "FOR UPDATE" in str(task_repositories._TASKS_BY_ID.locking.compile(dialect=dialect))
    assert "FOR UPDATE" not in str(task_repositories._TASKS_BY_ID.plain.compile(dialect=dialect))


# -- addresses


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite://host/path.db",
        "sqlite:///a.db?mode=ro",
        "sqlite+aiosqlite:///a.db",
        "sqlite://u:S3cret@host/path.db",
        "sqlite://u:S3cret@host:port/path.db",
        "sqlite://:S3cret@/path.db",
        "sqlite:///a.db?key=S3cret",
        "S3cret",
    ],
)
async def test_an_address_that_is_no_file_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///") as refused:
        await SQLiteStateStore.connect(uri)
    assert "S3cret" not in "".join(traceback.format_exception(refused.value))


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        await SQLiteStateStore.connect(f"sqlite:///{tmp_path}")


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/file/control_plane.db")


async def test_a_relative_address_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with await SQLiteStateStore.connect("sqlite:///folder/a.db"):
        assert (tmp_path / "folder" / "a.db").is_file()


async def test_the_registry_opens_by_scheme(uri: str) -> None:
    async with await open_state_store(uri) as store:
        assert isinstance(store, SQLiteStateStore)


@pytest.mark.parametrize("uri", ["postgres2://u:secret@h/db", "control_plane.db", ""])
async def test_the_registry_names_the_schemes_it_knows(uri: str) -> None:
    with pytest.raises(ConfigError, match="sqlite://") as refused:
        await open_state_store(uri)
    assert "secret" not in str(refused.value)


async def test_every_commit_is_synced_unless_it_need_not_be(store: SQLiteStateStore) -> None:
    def level(tx: StoreTransaction) -> object:
        assert isinstance(tx, SQLTransaction)
        return list(tx._connection.execute(sa.text("PRAGMA synchronous"), {}))

    full, normal = [(2,)], [(1,)]
    assert await store.transact(level) == full
    assert await store.transact(level, synced=False) == normal
    assert await store.transact(level) == full


@pytest.mark.parametrize("status", list(TaskStatus))
@pytest.mark.usefixtures("store")
async def test_the_tasks_of_every_status_are_found_by_an_index(database: Path, status: TaskStatus) -> None:
    ended = "AND finished_at IS NOT NULL ORDER BY status_changed_at" if status.is_terminal else ""
    query = f"SELECT task_id FROM tasks WHERE status = '{status.value}' {ended}"  # noqa: S608
    plan = explain(database, query)
    assert all("ix_tasks_" in line for line in plan), plan


async def test_a_full_disk_is_named_as_the_cause(tmp_path: Path) -> None:
    async with await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db") as store:
        with no_disk_writes(), pytest.raises(UnavailableError, match=r"state\.db cannot be .*disk"):
            await store.transact(lambda tx: tx.sessions.insert([a_session()]))
        await store.transact(lambda tx: tx.sessions.insert([a_session()]))
