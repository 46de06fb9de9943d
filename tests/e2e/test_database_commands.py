"""`llamactl db`: sizes, purges, backups and copies, in processes of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.llamactl import ANY_PORTS, Process, llamactl, started

from llama_deploy.state_stores.audit_repository import AuditConditions, AuditPlace
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import EventRecord, OutboxRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.records import a_session, a_task, an_instance
from llama_deploy.testing.state_store_suite.retention_cases import fill_tables
from llama_deploy.types import TaskStatus

ENDED = datetime.now(UTC) - timedelta(days=31)


def an_ended_task(task_id: str) -> Any:
    return a_task(
        task_id,
        status=TaskStatus.SUCCEEDED,
        status_changed_at=ENDED,
        finished_at=ENDED,
        stream_length=1,
        result="{}",
    )


def fill(tx: StoreTransaction) -> None:
    tx.sessions.insert([a_session("s1")])
    names = [f"t{n:04}" for n in range(700)]
    tx.tasks.insert([an_ended_task(name) for name in names])
    tx.events.insert([EventRecord(name, 0, "E", '{"a": "ü"}', terminal=True) for name in names])
    tx.tasks.insert([a_task("running", status=TaskStatus.RUNNING, instance_id="i1", token="secret")])
    tx.instances.put([an_instance("i1")])
    fill_tables(tx, "running", rows=3)
    tx.outbox.insert([OutboxRecord("m1", "topic", "{}")])


@pytest.fixture
def store(tmp_path: Path) -> str:
    uri = f"sqlite:///{tmp_path}/store.db"
    asyncio.run(_fill(uri))
    return uri


async def _fill(uri: str) -> None:
    async with await open_state_store(uri) as store:
        await store.transact(fill)


async def _count(uri: str) -> tuple[int, int]:
    def look(tx: StoreTransaction) -> tuple[int, int]:
        return len(tx.tasks.of_sessions(["s1"])), len(tx.retention.removed([f"t{n:04}" for n in range(700)]))

    async with await open_state_store(uri) as store:
        return await store.read(look)


def db(folder: Path, *arguments: str, code: int = 0) -> str:
    done = llamactl(folder, "db", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_store_is_measured_purged_and_vacuumed(tmp_path: Path, store: str) -> None:
    sizes = json.loads(db(tmp_path, "size", "--store", store, "--json"))
    rows = {table["name"]: table["rows"] for table in sizes["tables"]}
    assert (sizes["store"], rows["tasks"], rows["events"]) == ("sqlite", 701, 703)
    assert "701 rows" in db(tmp_path, "size", "--store", store)

    dry = json.loads(db(tmp_path, "purge", "--store", store, "--dry-run", "--json"))
    assert [each["tasks"] for each in dry["matching"]] == [700]
    assert "700" in db(tmp_path, "purge", "--store", store, "--dry-run", "--status", "succeeded")
    assert "No tasks" in db(tmp_path, "purge", "--store", store, "--dry-run", "--older-than", "60d")
    assert "--yes" in db(tmp_path, "purge", "--store", store, code=2)
    for wrong in (
        ("--older-than", "30"),
        ("--older-than", "soon"),
        ("--status", "running"),
        ("--status", "no status"),
    ):
        assert "error:" in db(tmp_path, "purge", "--store", store, *wrong, code=2)
    assert asyncio.run(_count(store)) == (701, 0)

    purged = json.loads(db(tmp_path, "purge", "--store", store, "--yes", "--json"))
    assert (purged["removed"], purged["more"]) == (700, False)
    assert asyncio.run(_count(store)) == (1, 700)
    vacuumed = json.loads(db(tmp_path, "vacuum", "--store", store, "--json"))
    assert vacuumed["after_bytes"] <= vacuumed["before_bytes"]


def test_a_backup_is_restored(tmp_path: Path, store: str) -> None:
    backup = tmp_path / "backup.db"
    made = json.loads(db(tmp_path, "backup", str(backup), "--store", store, "--json"))
    assert made == {"file": str(backup), "bytes": backup.stat().st_size}
    assert "exists already" in db(tmp_path, "backup", "backup.db", "--store", store, code=1)
    db(tmp_path, "purge", "--store", store, "--yes")
    assert "--replace" in db(tmp_path, "restore", "backup.db", "--store", store, code=1)
    restored = json.loads(db(tmp_path, "restore", "backup.db", "--store", store, "--replace", "--json"))
    assert restored["taken_back"] == 1
    assert Path(restored["replaced"]).is_file()
    assert asyncio.run(_count(store)) == (701, 0)
    assert json.loads(db(tmp_path, "restore", "--in-place", "--store", store, "--json")) == {"taken_back": 0}


def test_what_is_done_to_postgresql_by_its_own_tools(tmp_path: Path) -> None:
    uri = "postgresql://me:hush@db.example:5432/tasks"
    for command, tool in (("backup", "pg_dump"), ("restore", "pg_restore")):
        told = db(tmp_path, command, "file", "--store", uri, code=2)
        assert tool in told
        assert "postgresql://db.example:5432/tasks" in told
        assert "hush" not in told


@pytest.fixture
def serving(tmp_path: Path, store: str) -> Iterator[Process]:
    with started(tmp_path, "serve", "--store", store, *ANY_PORTS, "--json") as running:
        yield running


def test_a_running_control_plane_is_asked(tmp_path: Path, store: str, serving: Process) -> None:
    url = json.loads(serving.line())["control_plane_url"]
    assert "llamactl db purge -s URL" in db(tmp_path, "purge", "--store", store, "--yes", code=1)
    assert "stop it" in db(tmp_path, "vacuum", "--store", store, code=1)
    db(tmp_path, "backup", "backup.db", "--store", store)
    assert json.loads(db(tmp_path, "size", "--store", store, "--json"))["total_bytes"] > 0
    assert json.loads(db(tmp_path, "size", "-s", url, "--json"))["store"] == "sqlite"
    purged = json.loads(db(tmp_path, "purge", "-s", url, "--older-than", "1d", "--yes", "--json"))
    # The retention of the control plane may have begun with them.
    assert purged["removed"] <= 700
    assert json.loads(db(tmp_path, "purge", "-s", url, "--dry-run", "--json"))["matching"] == []


def test_a_sqlite_store_is_copied_to_postgresql(tmp_path: Path, store: str, postgresql_uri: str) -> None:
    assert json.loads(db(tmp_path, "purge", "--store", store, "--yes", "--status", "cancelled", "--json"))
    copied = json.loads(db(tmp_path, "copy", store, postgresql_uri, "--json"))
    assert copied["rows"]["audit"] == 2
    assert (copied["rows"]["tasks"], copied["rows"]["events"], copied["rows"]["journal"]) == (701, 703, 3)

    async def compare() -> None:
        async with await open_state_store(store) as one, await open_state_store(postgresql_uri) as other:

            def log(tx: StoreTransaction) -> list[Any]:
                """Return the audit log: who has purged the store."""
                return tx.audit.page(
                    AuditConditions(),
                    since=datetime(1970, 1, 1, tzinfo=UTC),
                    before=AuditPlace(datetime(9999, 1, 1, tzinfo=UTC), 0),
                    limit=10,
                )

            def everything(tx: StoreTransaction) -> list[Any]:
                return [
                    tx.sessions.page(),
                    tx.tasks.of_sessions(["s1"]),
                    tx.events.load("running"),
                    tx.events.load("t0001"),
                    tx.inbox.load(["running"]),
                    tx.runs.load(["running"]),
                    tx.runs.load_journal(["running"]),
                    tx.instances.load(),
                    list(tx.outbox.load().values()),
                    log(tx),
                ]

            assert await one.read(everything) == await other.read(everything)
            await other.transact(lambda tx: tx.tasks.insert([a_task("new", session_id="s1")]))
            last = (await other.read(lambda tx: tx.tasks.of_sessions(["s1"])))[-1]
            assert last.task_id == "new"
            (last_place, done), (_, begun) = await other.read(log)
            assert (begun.outcome, done.outcome) == ("begun", "done")
            assert done.subject.startswith("llamactl of ")
            await other.transact(lambda tx: tx.audit.append([done]))
            assert (await other.read(log))[0][0] > last_place

    asyncio.run(compare())
    assert "has rows in" in db(tmp_path, "copy", store, postgresql_uri, code=1)
    sizes = json.loads(db(tmp_path, "size", "--store", postgresql_uri, "--json"))
    assert {each["name"]: each["rows"] for each in sizes["tables"]}["tasks"] == 702
    purged = json.loads(db(tmp_path, "purge", "--store", postgresql_uri, "--yes", "--json"))
    assert purged["removed"] == 700
    assert json.loads(db(tmp_path, "vacuum", "--store", postgresql_uri, "--json"))["store"] == "postgresql"
    assert "only to PostgreSQL" in db(tmp_path, "copy", postgresql_uri, store, code=2)


def test_a_copy_that_fails_leaves_the_target_empty(tmp_path: Path, store: str, postgresql_uri: str) -> None:
    async def break_row() -> None:
        async with await open_state_store(store) as one:
            # PostgreSQL cannot store this character, and it comes late in the copy.
            await one.transact(lambda tx: tx.outbox.insert([OutboxRecord("m2", "topic", "\0")]))

    asyncio.run(break_row())
    assert "cannot store" in db(tmp_path, "copy", store, postgresql_uri, code=1)
    sizes = json.loads(db(tmp_path, "size", "--store", postgresql_uri, "--json"))
    assert {each["rows"] for each in sizes["tables"]} == {0}
