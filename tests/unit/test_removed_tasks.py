"""A removed task leaves nothing in any table, whatever tables there are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from llama_deploy.state_stores.migrations import upgrade_schema
from llama_deploy.state_stores.retention_rows import EndedFilter, Place, RemovedTask
from llama_deploy.state_stores.sql import retention_repository
from llama_deploy.state_stores.sql.tables import metadata, questions, sessions, tasks
from llama_deploy.state_stores.sql.task_tables import (
    TABLES_OF_QUESTIONS,
    TABLES_OF_SESSIONS,
    TABLES_OF_TASKS,
)
from llama_deploy.state_stores.sql.transaction import SQLTransaction
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import SessionPolicy, TaskStatus

OTHERS = {
    *("tasks", "sessions", "removed_tasks", "retention_progress"),
    *("owner_counts", "task_counts", "task_tags"),  # which triggers write
    *("services", "versions", "instances", "outbox", "api_keys", "audit"),
}
"""The tables whose rows belong neither to a task nor to a session. Add a new one here only if that is so."""


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    try:
        with engine.connect() as connection:
            upgrade_schema(connection, name="memory")
            yield connection
    finally:
        engine.dispose()


def value_of(column: sa.Column[Any], task_id: str) -> Any:
    if column.name == "task_id":
        return task_id
    if column.name == "session_id":
        return f"session of {task_id}"
    kind = column.type.python_type if not isinstance(column.type, sa.types.TypeDecorator) else None
    values: dict[Any, Any] = {int: 1, str: f"text of {task_id}", float: 1.0, bool: False, bytes: b"data"}
    if kind in values:
        return values[kind]
    enum = getattr(column.type, "enum", None)
    return NOW if enum is None else next(iter(enum))


def fill(connection: sa.Connection, table: sa.Table, *task_ids: str) -> None:
    for task_id in task_ids:
        row = {
            column.name: value_of(column, task_id)
            for column in table.c
            if (not column.nullable and column.name != "position") or column.name in table.primary_key.columns
        }
        if table is tasks:
            row.pop("position")
            row |= {"status": TaskStatus.FAILED, "finished_at": NOW, "tags": "[]"}
        if table is sessions:
            row["policy"] = SessionPolicy.ENQUEUE
        connection.execute(sa.insert(table), row)


def left(connection: sa.Connection, table: sa.Table, column: str = "task_id") -> set[Any]:
    return set(connection.execute(sa.select(table.c[column])).scalars())


@pytest.mark.parametrize("table", TABLES_OF_TASKS, ids=lambda table: table.name)
def test_the_rows_of_a_removed_task_go_and_those_of_others_stay(
    connection: sa.Connection, table: sa.Table
) -> None:
    fill(connection, tasks, "gone", "in slices", "kept")
    fill(connection, table, "gone", "in slices", "kept")
    tx = SQLTransaction(connection, lock_rows=False)
    tx.retention.remove(
        [
            RemovedTask("gone", "s", "digest", NOW),
            RemovedTask("in slices", "s", "digest", NOW, has_rest=True),
        ]
    )
    assert left(connection, tasks) == {"kept"}
    while not tx.retention.delete_rest("in slices", max_rows=1, max_bytes=1):
        pass
    assert left(connection, table) == {"kept"}


@pytest.mark.parametrize(
    "table", [*TABLES_OF_TASKS, *TABLES_OF_SESSIONS, tasks, sessions], ids=lambda table: table.name
)
def test_the_rows_of_a_deleted_session_go_and_those_of_others_stay(
    connection: sa.Connection, table: sa.Table
) -> None:
    for each in {table, tasks, sessions}:
        fill(connection, each, "gone", "kept")
    column = "task_id" if "task_id" in table.c else "session_id"
    before = left(connection, table, column)
    SQLTransaction(connection, lock_rows=False).sessions.delete(["session of gone"])
    after = left(connection, table, column)
    assert (len(before), len(after)) == (2, 1)
    assert "kept" in next(iter(after))


@pytest.mark.parametrize("table", TABLES_OF_QUESTIONS, ids=lambda table: table.name)
def test_the_rows_of_the_questions_of_a_removed_task_go_too(
    connection: sa.Connection, table: sa.Table
) -> None:
    for each in (tasks, questions, table):
        fill(connection, each, "gone", "kept")
    assert len(left(connection, table, "question_id")) == 2
    SQLTransaction(connection, lock_rows=False).retention.remove([RemovedTask("gone", "s", "digest", NOW)])
    assert left(connection, table, "question_id") == left(connection, questions, "question_id")
    assert len(left(connection, questions)) == 1


def test_it_is_known_of_every_table_whose_rows_it_has() -> None:
    known = {table.name for table in (*TABLES_OF_TASKS, *TABLES_OF_QUESTIONS, *TABLES_OF_SESSIONS)}
    others = {table.name for table in metadata.sorted_tables} - known
    assert others == OTHERS


def test_rows_are_found_by_an_index() -> None:
    async def plans() -> list[str]:
        found: list[str] = []
        async with await SQLiteStateStore.connect("sqlite:///:memory:") as store:

            def explain(tx: Any) -> None:
                driver = tx._connection._driver
                asked: list[str] = []
                driver.set_trace_callback(asked.append)
                run(tx.retention)
                driver.set_trace_callback(None)
                for statement in asked:
                    if statement.startswith(("SELECT", "DELETE", "UPDATE")):
                        rows = driver.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                        found.extend(f"{row[3]}: {statement}" for row in rows)

            await store.transact(explain)
        return found

    def run(retention: retention_repository.SQLRetention) -> None:
        retention.ended(TaskStatus.FAILED, before=NOW)
        retention.ended(TaskStatus.FAILED, before=NOW, after=Place(datetime(2026, 1, 1, tzinfo=UTC), 3))
        retention.newest(EndedFilter(), count=10)
        retention.newest(EndedFilter((TaskStatus.FAILED,), "service"), count=10)
        retention.newest(EndedFilter(session_id="session"), count=10)
        retention.counts(EndedFilter(), before=NOW)
        retention.still_ended(["a", "b"])
        retention.inputs(["a", "b"])
        retention.sizes(["a", "b"])
        retention.remove([RemovedTask("a", "s", "d", NOW)])
        retention.delete_rest("b", max_rows=10, max_bytes=10)
        retention.with_rest(limit=3)
        retention.trim_events({"a": 1})
        retention.trim_some_events("a", last=3, max_rows=10, max_bytes=10)
        retention.removed(["a"])
        retention.forget_removed(before=NOW, limit=10)
        retention.untouched_sessions(["a"])
        retention.session_page(after="a", limit=10)
        retention.delete_empty_sessions(["a"])

    found = asyncio.run(plans())
    assert len(found) > 20
    harmless = ("SCAN anon", "SCAN CONSTANT ROW")
    scans = [plan for plan in found if plan.startswith("SCAN ") and not plan.startswith(harmless)]
    # One row is enough; and few tasks have rows that wait to be deleted, with an index of their own.
    assert [plan for plan in scans if "LIMIT 1" not in plan and "ix_removed_tasks_rest" not in plan] == []
    assert not [plan for plan in found if "TEMP B-TREE FOR ORDER BY" in plan]


def test_a_task_in_a_session_is_removed_with_few_statements(connection: sa.Connection) -> None:
    tx = SQLTransaction(connection, lock_rows=False)
    tx.sessions.insert([a_session("s1")])
    names = [f"t{n}" for n in range(300)]
    tx.tasks.insert([a_task(name, status=TaskStatus.FAILED, finished_at=NOW) for name in names])
    asked: list[str] = []
    sa.event.listen(
        connection, "before_cursor_execute", lambda *arguments: asked.append(str(arguments[2])), named=False
    )
    tx.retention.remove([RemovedTask(name, "s1", "digest", NOW) for name in names])
    assert len(asked) == 3, "their ids are stored, tables with rows of them are looked for, they are deleted"
