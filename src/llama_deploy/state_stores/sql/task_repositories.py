"""Sessions and tasks in SQL.

The statements are built once, when this module is imported, so that SQLAlchemy compiles each of them once per
database and the driver prepares it once per connection. Every method sends a fixed number of statements for
any number of rows, plus one for each further 500 ids. The same holds for the other repositories here.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from operator import itemgetter

import sqlalchemy as sa

from llama_deploy.state_stores.records import FIXED, PROGRESS, SessionRecord, TaskRecord
from llama_deploy.state_stores.repositories import SessionRepository, TaskRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, chunks, ids, limit, pad
from llama_deploy.state_stores.sql.queries import Mapper, Query, Update
from llama_deploy.state_stores.sql.tables import (
    events,
    inbox,
    journal,
    runs,
    sessions,
    task_is_choosy,
    task_is_open,
    task_is_pending,
    task_is_published_suspect,
    task_is_queued,
    task_is_running,
    task_is_unrouted,
    task_is_waiting,
    task_target,
    tasks,
)

_SESSION = Mapper(SessionRecord, sessions)
_TASK = Mapper(TaskRecord, tasks)

_SESSIONS_BY_ID = Query.of(_SESSION.where(sessions.c.session_id.in_(ids)), in_order_of=sessions.c.session_id)
_SESSIONS_AFTER = Query.of(
    _SESSION.where(sessions.c.session_id > sa.bindparam("after")).order_by(sessions.c.session_id).limit(limit)
)
_INSERT_SESSIONS = sa.insert(sessions)
_UPDATE_SESSIONS = Update(_SESSION, key="session_id", fields=("policy", "state", "version", "updated_at"))

_tasks_of_sessions = sa.select(tasks.c.task_id).where(tasks.c.session_id.in_(ids))
_DELETE_SESSIONS = (
    *(
        sa.delete(table).where(table.c.task_id.in_(_tasks_of_sessions))
        for table in (events, inbox, journal, runs)
    ),
    sa.delete(tasks).where(tasks.c.session_id.in_(ids)),
    sa.delete(sessions).where(sessions.c.session_id.in_(ids)),
)

_TASKS_BY_ID = Query.of(_TASK.where(tasks.c.task_id.in_(ids)), in_order_of=tasks.c.task_id)

# The position comes last, to order by it across statements and to cut it off.
_tasks_with_position = sa.select(*_TASK.columns, tasks.c.position)
_TASKS_OF_SESSIONS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(ids)), in_order_of=tasks.c.task_id
)
_IDS_OF_SESSIONS = Query.of(
    sa.select(tasks.c.session_id, tasks.c.task_id, tasks.c.position).where(tasks.c.session_id.in_(ids)),
    in_order_of=tasks.c.task_id,
)
_OPEN_TASKS_OF_SESSIONS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(ids), task_is_open), in_order_of=tasks.c.task_id
)
_SOME_OPEN_TASKS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(ids), task_is_open).limit(limit),
    in_order_of=tasks.c.task_id,
)
_FIRST_OPEN_TASKS = Query.unlocked(
    _tasks_with_position.where(tasks.c.session_id == sa.bindparam("session_id"), task_is_open)
    .order_by(tasks.c.position)
    .limit(limit)
)
_TASKS_OF_INSTANCES = Query.of(
    _tasks_with_position.where(tasks.c.instance_id.in_(ids), task_is_running), in_order_of=tasks.c.task_id
)
_RUNNING_COUNTS = Query.unlocked(
    sa.select(tasks.c.instance_id, sa.func.count())
    .where(tasks.c.instance_id.in_(ids), task_is_running)
    .group_by(tasks.c.instance_id)
)

_unrouted_tasks = _TASK.where(task_is_unrouted).order_by(tasks.c.redispatch_at, tasks.c.position).limit(limit)
_UNROUTED_TASKS = Query.of(_unrouted_tasks)
_UNROUTED_TASKS_BEFORE = Query.of(_unrouted_tasks.where(tasks.c.redispatch_at < sa.bindparam("due_before")))

_queued_tasks = (
    _TASK.where(task_is_queued).order_by(tasks.c.redispatch_at.nulls_first(), tasks.c.position).limit(limit)
)
_QUEUED_TASKS = Query.of(_queued_tasks)
_QUEUED_TASKS_BEFORE = Query.of(_queued_tasks.where(tasks.c.redispatch_at < sa.bindparam("due_before")))
_HELD_TASKS = Query.of(_queued_tasks.where(task_target.in_(ids), task_is_choosy))

_is_for_service = task_target == sa.bindparam("service_name")
_QUEUED_FOR = Query.of(
    _TASK.where(task_is_queued, _is_for_service)
    .order_by(tasks.c.redispatch_at.desc().nulls_last())
    .limit(limit)
)
# One for each status: the condition of a partial index has to be spelled out.
_COUNTS_WAITING = tuple(
    Query.unlocked(sa.select(sa.func.count()).select_from(tasks).where(status, _is_for_service))
    for status in (task_is_pending, task_is_queued)
)
# Counted in the order of the index, so that nothing has to be sorted, and added up in Python.
_SUSPECTS = Query.unlocked(
    sa.select(tasks.c.service_name, tasks.c.routed_to, sa.func.count())
    .where(task_is_published_suspect)
    .group_by(tasks.c.service_name, tasks.c.routed_to)
)

_sleeping_tasks = (
    _TASK.where(task_is_waiting, tasks.c.wake_at.is_not(None))
    .order_by(tasks.c.wake_at, tasks.c.position)
    .limit(limit)
)
_SLEEPING_TASKS = Query.of(_sleeping_tasks)
_SLEEPING_TASKS_BEFORE = Query.of(_sleeping_tasks.where(tasks.c.wake_at < sa.bindparam("due_before")))

# Inline: the new row's position is not needed, and some databases send it back at a cost.
_INSERT_TASKS = sa.insert(tasks).inline()
_UPDATE_TASKS = Update(
    _TASK, key="task_id", fields=[name for name in _TASK.names if name not in {"task_id", *FIXED}]
)
_UPDATE_PROGRESS = Update(_TASK, key="task_id", fields=PROGRESS)


class SQLSessions(SQLRepository, SessionRepository):
    """Sessions in the table `sessions`."""

    def load(self, session_ids: Collection[str]) -> dict[str, SessionRecord]:
        found = map(_SESSION.record, self._access.rows_by_ids(_SESSIONS_BY_ID, session_ids))
        return {session.session_id: session for session in found}

    def page(self, *, after: str = "", limit: int = 1000) -> list[SessionRecord]:
        rows = self._access.rows(_SESSIONS_AFTER, {"after": after, "limit": limit})
        return [_SESSION.record(row) for row in rows]

    def insert(self, sessions: Sequence[SessionRecord]) -> None:
        self._access.write(_INSERT_SESSIONS, _SESSION.rows(sessions))

    def update(self, sessions: Sequence[SessionRecord]) -> None:
        self._access.update(_UPDATE_SESSIONS, sessions)

    def delete(self, session_ids: Collection[str]) -> None:
        self._access.change(_DELETE_SESSIONS, session_ids)


class SQLTasks(SQLRepository, TaskRepository):
    """Tasks in the table `tasks`."""

    def load(self, task_ids: Collection[str]) -> dict[str, TaskRecord]:
        found = map(_TASK.record, self._access.rows_by_ids(_TASKS_BY_ID, task_ids))
        return {task.task_id: task for task in found}

    def of_sessions(self, session_ids: Collection[str], *, open_only: bool = False) -> list[TaskRecord]:
        return self._in_order(_OPEN_TASKS_OF_SESSIONS if open_only else _TASKS_OF_SESSIONS, session_ids)

    def ids_of_sessions(self, session_ids: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        rows = self._access.rows_by_ids(_IDS_OF_SESSIONS, session_ids)
        for session_id, task_id, _ in sorted(rows, key=itemgetter(-1)):
            found.setdefault(session_id, []).append(task_id)
        return found

    def first_open(self, session_ids: Collection[str], *, limit: int) -> list[TaskRecord]:
        # One statement for all sessions, unless they have so many open tasks that some would be cut off.
        most = limit + len(session_ids)
        found = self._access.rows_by_ids(_SOME_OPEN_TASKS, session_ids, {"limit": most})
        if len(found) >= most:
            found = [
                row
                for session_id in session_ids
                for row in self._access.rows(_FIRST_OPEN_TASKS, {"session_id": session_id, "limit": limit})
            ]
        return [_TASK.record(row[:-1]) for row in sorted(found, key=itemgetter(-1))]

    def of_instances(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        return self._in_order(_TASKS_OF_INSTANCES, instance_ids)

    def queued(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        return self._due(_QUEUED_TASKS, _QUEUED_TASKS_BEFORE, due_before, limit)

    def queued_for(self, service_name: str, *, limit: int = 1000) -> list[TaskRecord]:
        rows = self._access.rows(_QUEUED_FOR, {"service_name": service_name, "limit": limit})
        return [_TASK.record(row) for row in rows]

    def count_waiting(self, service_name: str) -> int:
        parameters = {"service_name": service_name}
        return sum(count for query in _COUNTS_WAITING for (count,) in self._access.rows(query, parameters))

    def suspects(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for service_name, routed_to, count in self._access.rows(_SUSPECTS, {}):
            counts[service_name if routed_to is None else routed_to] += count
        return dict(counts)

    def sleeping(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        return self._due(_SLEEPING_TASKS, _SLEEPING_TASKS_BEFORE, due_before, limit)

    def unrouted(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        return self._due(_UNROUTED_TASKS, _UNROUTED_TASKS_BEFORE, due_before, limit)

    def running_counts(self, instance_ids: Collection[str]) -> dict[str, int]:
        rows = self._access.rows_by_ids(_RUNNING_COUNTS, instance_ids)
        return {instance_id: count for instance_id, count in rows}  # noqa: C416 - mypy knows no pairs here

    def held(self, service_names: Collection[str], *, limit: int = 1000) -> list[TaskRecord]:
        found: list[TaskRecord] = []
        for names in chunks(service_names):
            rows = self._access.rows(_HELD_TASKS, {IDS: pad(names), "limit": limit})
            found += map(_TASK.record, rows)
        return found[:limit]

    def insert(self, tasks: Sequence[TaskRecord]) -> None:
        self._access.write(_INSERT_TASKS, _TASK.rows(tasks))

    def update(self, tasks: Sequence[TaskRecord]) -> None:
        self._access.update(_UPDATE_TASKS, tasks)

    def update_progress(self, tasks: Sequence[TaskRecord]) -> None:
        self._access.update(_UPDATE_PROGRESS, tasks)

    def _due(self, every: Query, early: Query, due_before: datetime | None, limit: int) -> list[TaskRecord]:
        if due_before is None:
            rows = self._access.rows(every, {"limit": limit})
        else:
            rows = self._access.rows(early, {"due_before": due_before, "limit": limit})
        return [_TASK.record(row) for row in rows]

    def _in_order(self, query: Query, ids: Collection[str]) -> list[TaskRecord]:
        rows = sorted(self._access.rows_by_ids(query, ids), key=itemgetter(-1))
        return [_TASK.record(row[:-1]) for row in rows]
