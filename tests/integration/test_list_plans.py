"""Lists and counts read from an index on both databases, whatever is asked for."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.list_repositories import TaskConditions
from llama_deploy.state_stores.postgresql import PostgreSQLStateStore
from llama_deploy.state_stores.postgresql_vacuum import vacuum_tables
from llama_deploy.state_stores.records import StepsRecord
from llama_deploy.state_stores.sql.access import SQLAccess
from llama_deploy.state_stores.sql.list_repositories import SQLSteps, SQLTaskLists
from llama_deploy.state_stores.sql.task_repositories import SQLSessions
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.records import NOW, a_session, a_task
from llama_deploy.types import TaskStatus
from llama_deploy.types.owners import Owner

ENDED, OPEN = 20_000, 300
DIALECTS: dict[str, sa.Dialect] = {"sqlite": SQLiteDialect(), "postgresql": PGDialect()}  # type: ignore[no-untyped-call]
OWNERS = [Owner(), Owner("acme"), Owner("acme", "zoe"), Owner("", "yan")]
CONDITIONS = {
    "statuses": frozenset({TaskStatus.FAILED}),
    "service_name": "service-3",
    "session_id": "session-7",
    "parent_task_id": "task-1",
    "tags": ["red", "blue"],
    "created_from": NOW + timedelta(minutes=5),
    "created_before": NOW + timedelta(minutes=50),
}


def combinations() -> Iterator[TaskConditions]:
    """Yield every condition alone, and every two and three of them together."""
    for count in range(4):
        for names in itertools.combinations(CONDITIONS, count):
            yield TaskConditions(**{name: CONDITIONS[name] for name in names})  # type: ignore[arg-type]
    yield TaskConditions(statuses=frozenset({TaskStatus.WAITING, TaskStatus.FAILED}))
    yield TaskConditions(statuses=frozenset({TaskStatus.RUNNING}), service_name="service-3")
    for owner in OWNERS:
        yield TaskConditions(owner=owner)
        for name, value in CONDITIONS.items():
            yield TaskConditions(owner=owner, **{name: value})  # type: ignore[arg-type]


class Explaining:
    """A connection that keeps how the database executes what passes it."""

    def __init__(self, connection: Any, *, is_sqlite: bool) -> None:
        self.dialect = connection.dialect
        self.plans: dict[str, list[str]] = {}
        self._connection = connection
        self._is_sqlite = is_sqlite

    def execute(self, statement: Any, parameters: Any) -> Iterable[Sequence[Any]]:
        dialect: sa.Dialect = DIALECTS["sqlite" if self._is_sqlite else "postgresql"]
        options = {"literal_binds": True, "render_postcompile": True}
        filled = statement.params(**parameters)
        text = str(filled.compile(dialect=dialect, compile_kwargs=options)).replace("%%", "%")
        explain = "EXPLAIN QUERY PLAN" if self._is_sqlite else "EXPLAIN (FORMAT JSON)"
        rows = self._connection.execute(sa.text(f"{explain} {text}".replace(":", r"\:")), {})
        self.plans[text] = [row[3] for row in rows] if self._is_sqlite else [*_nodes(rows)]
        result: Iterable[Sequence[Any]] = self._connection.execute(statement, parameters)
        return result


def _nodes(rows: Any) -> Iterator[str]:
    ((plan,),) = rows
    waiting = [plan[0]["Plan"] if isinstance(plan, list) else json.loads(plan)[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        name = node["Node Type"]
        yield f"{name} on {node['Relation Name']}" if "Relation Name" in node else name
        waiting += node.get("Plans", [])


def fill(tx: StoreTransaction) -> None:
    chance = random.Random(11)  # noqa: S311 - nothing is secret
    tasks = []
    for n in range(ENDED + OPEN):
        is_open = n % ((ENDED + OPEN) // OPEN) == 0
        statuses = [status for status in TaskStatus if status.is_terminal is not is_open]
        tasks.append(
            a_task(
                f"task-{n}",
                session_id=f"session-{n % 1000}",
                service_name=f"service-{n % 20}",
                status=chance.choice(statuses),
                created_at=NOW + timedelta(seconds=n),
                finished_at=None if is_open else NOW,
                parent_task_id=f"task-{n % 100}" if n % 50 == 0 else None,
                tags=json.dumps(chance.sample(["red", "blue", "green"], 2)) if n % 5 == 0 else "[]",
                tenant="" if n % 3 else f"tenant-{n % 7}" if n % 2 else "acme",
                subject="zoe" if n % 6 == 0 else "yan" if n % 101 == 0 else None,
            )
        )
    tx.sessions.insert(
        [
            a_session(f"{n}")._replace(tenant=OWNERS[n % 4].tenant, subject=OWNERS[n % 4].subject)
            for n in range(2000)
        ]
    )
    tx.tasks.insert(tasks)
    tx.steps.put([StepsRecord(task.task_id, 1, 0, "[]") for task in tasks])


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    opened: StateStore
    if request.param == "sqlite":
        opened = await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db")
    else:
        opened = await PostgreSQLStateStore.connect(request.getfixturevalue("postgresql_uri"))
    async with opened:
        await opened.transact(fill)
        if request.param == "postgresql":  # its autovacuum does it after so many inserts
            await vacuum_tables(request.getfixturevalue("postgresql_uri"))
        yield opened


def is_indexed(step: str) -> bool:
    """Return whether a step of a plan reads no table as a whole."""
    if step.startswith("SCAN"):
        return "USING" in step or "(subquery" in step or "anon_" in step
    return not step.startswith(("Seq Scan", "Bitmap"))


def sorts(plan: Sequence[str]) -> bool:
    """Return whether a plan sorts what it lists. Counts may sort the open tasks of an owner."""
    return "Sort" in plan and "Aggregate" not in plan


def lists_with(wanted: TaskConditions, lists: SQLTaskLists) -> None:
    for newest_first in (True, False):
        page = lists.page(wanted, newest_first=newest_first, limit=20)
        if page.last is not None:
            lists.page(wanted, newest_first=newest_first, after=page.last, limit=20)
    lists.page_by_id(replace(wanted, prefix="task-1"), limit=20)


async def test_every_list_and_count_has_its_index(store: StateStore) -> None:
    is_sqlite = isinstance(store, SQLiteStateStore)

    def look(tx: StoreTransaction) -> dict[str, list[str]]:
        connection = Explaining(tx._connection, is_sqlite=is_sqlite)  # type: ignore[attr-defined]
        access = SQLAccess(connection, lock_rows=False)
        lists, steps, sessions = SQLTaskLists(access), SQLSteps(access), SQLSessions(access)
        for wanted in combinations():
            lists_with(wanted, lists)
        for owner in (None, *OWNERS):
            lists.counts(owner)
            for tag, after, lean in itertools.product((None, "red"), (None, "5"), (True, False)):
                sessions.heads(owner=owner, tag=tag, after=after, newest_first=lean, limit=20)
                sessions.page(owner=owner, after="5", limit=20, lean=lean)
        steps.load("task-1")
        return connection.plans

    plans = await store.read(look)
    assert len(plans) > 200
    bad = {text: plan for text, plan in plans.items() if not all(map(is_indexed, plan))}
    assert not bad, next(iter(bad.items()))
    # What has no conditions to check row by row comes in the order of the index.
    plain = [plan for text, plan in plans.items() if "LIMIT 32" in text and "anon_" not in text]
    assert len(plain) > 20
    assert not [plan for plan in plain if any("TEMP B-TREE" in step or step == "Sort" for step in plan)]


async def test_a_service_and_a_tag_are_checked_without_the_rows_of_tasks(store: StateStore) -> None:
    is_sqlite = isinstance(store, SQLiteStateStore)

    def look(tx: StoreTransaction) -> dict[str, list[str]]:
        connection = Explaining(tx._connection, is_sqlite=is_sqlite)  # type: ignore[attr-defined]
        lists = SQLTaskLists(SQLAccess(connection, lock_rows=False))
        assert lists.page(TaskConditions(service_name="service-5", tags=["red"]), limit=20).tasks
        return connection.plans

    plans = await store.read(look)
    checking = [text for text in plans if "anon_1" in text]
    assert checking
    assert not [text for text in checking if "tasks" in text]


async def test_postgresql_plans_a_list_once_and_keeps_its_index(postgresql_uri: str) -> None:
    """A plan for any parameters is as good as one for certain ones, and so PostgreSQL does not plan anew."""
    async with await PostgreSQLStateStore.connect(postgresql_uri) as store:
        await store.transact(fill)
        await vacuum_tables(postgresql_uri)
        await store.transact(lambda tx: execute(tx, MILLIONS))

        planned: dict[str, int] = {}
        plans: dict[str, list[str]] = {}

        def look(tx: StoreTransaction, some: Sequence[TaskConditions]) -> None:
            lists = SQLTaskLists(SQLAccess(tx._connection, lock_rows=False))  # type: ignore[attr-defined]
            for wanted in some:
                for _ in range(7):  # the first five times it plans in any case
                    lists_with(wanted, lists)
                    lists.counts(wanted.owner)
            prepared = execute(tx, PREPARED)
            execute(tx, "SET LOCAL plan_cache_mode = force_generic_plan")
            for name, statement, count, times in prepared:
                if statement not in plans:
                    values = f"({', '.join(['NULL'] * count)})" if count else ""
                    explain = f'EXPLAIN (FORMAT JSON) EXECUTE "{name}" {values}'
                    plans[statement] = [*_nodes(execute(tx, explain))]
                    planned[statement] = times

        wanted = [*combinations()]
        for start in range(0, len(wanted), PREPARED_TOGETHER):
            await store.read(partial(look, some=wanted[start : start + PREPARED_TOGETHER]))
    assert len(plans) > 100
    # Where it knows that a parent has few children or none, a plan for them is cheaper indeed.
    assert not [text for text, times in planned.items() if times > 5 and "parent_task_id = " not in text]
    bad = {text: plan for text, plan in plans.items() if sorts(plan) or not all(map(is_indexed, plan))}
    assert not bad, next(iter(bad.items()))


PREPARED_TOGETHER = 20
"""A connection keeps the statements of so many lists, and what explains them, prepared."""
MILLIONS = (
    "UPDATE pg_class SET reltuples = reltuples * 100 WHERE relname ~ '^(tasks|task_tags|(ix|pk|uq)_task)'"
)
"""Makes the planner expect a hundred times as many rows."""
PREPARED = """
    SELECT name, statement, cardinality(parameter_types), custom_plans FROM pg_prepared_statements
    WHERE statement ~ '^SELECT (task|anon)' AND generic_plans + custom_plans > 6
"""


def execute(tx: StoreTransaction, statement: str) -> list[Any]:
    rows = tx._connection.execute(sa.text(statement), {})  # type: ignore[attr-defined]
    return list(rows) if rows.returns_rows else []
