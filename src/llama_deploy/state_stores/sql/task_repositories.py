"""Sessions and tasks in SQL.

The statements are built once, when this module is imported, so that SQLAlchemy compiles each of them once per
database and the driver prepares it once per connection. Every method sends a fixed number of statements for
any number of rows, plus one for each further 500 ids. The same holds for the other repositories here.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from operator import itemgetter
from typing import Any, Final, Self

import sqlalchemy as sa

from llama_deploy.state_stores.records import (
    FIXED,
    NO_TAGS,
    SavedStateRecord,
    SessionHeadRecord,
    SessionRecord,
    TaskRecord,
    TaskSizeRecord,
)
from llama_deploy.state_stores.repositories import SessionRepository, TaskRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, chunks, ids, limit, pad
from llama_deploy.state_stores.sql.queries import Changes, Inserts, Mapper, Query, Update
from llama_deploy.state_stores.sql.tables import (
    session_is_of_tenant,
    session_states,
    session_tags,
    sessions,
    task_is_open,
    task_is_pending,
    task_is_published_suspect,
    task_is_queued,
    task_is_running,
    task_is_unrouted,
    task_is_waiting,
    task_needs_fitting_version,
    task_target,
    tasks,
)
from llama_deploy.state_stores.sql.task_tables import TABLES_OF_SESSIONS, deletes_of_tasks
from llama_deploy.types import SessionPolicy
from llama_deploy.types.keys import internal_key
from llama_deploy.types.owners import Owner

_SESSION = Mapper(SessionRecord, sessions, large=["state"])
_SAVED_STATE = Mapper(SavedStateRecord, session_states)
_TASK = Mapper(TaskRecord, tasks, large=["input", "result"])

_SESSIONS_BY_ID = Query.of(_SESSION.where(sessions.c.session_id.in_(ids)), in_order_of=sessions.c.session_id)
_LEAN_SESSIONS_BY_ID = Query.of(
    _SESSION.lean(sessions.c.session_id.in_(ids)), in_order_of=sessions.c.session_id
)
_is_after = sessions.c.session_id > sa.bindparam("after")


class _Owned(StrEnum):
    """Of which sessions a list is."""

    BY_ANYBODY = "anybody"
    BY_DEFAULT_TENANT = "default_tenant"
    BY_TENANT = "tenant"
    BY_SUBJECT = "subject"

    @classmethod
    def by(cls, owner: Owner | None) -> Self:
        if owner is None:
            return cls.BY_ANYBODY
        if owner.subject is not None:
            return cls.BY_SUBJECT
        return cls.BY_TENANT if owner.tenant else cls.BY_DEFAULT_TENANT


_has_tenant = sessions.c.tenant == sa.bindparam("tenant")
_OWNED: Final[Mapping[_Owned, Sequence[sa.ColumnElement[bool]]]] = {
    _Owned.BY_ANYBODY: [],
    _Owned.BY_DEFAULT_TENANT: [_has_tenant],
    _Owned.BY_TENANT: [session_is_of_tenant, _has_tenant],
    _Owned.BY_SUBJECT: [
        sessions.c.subject.is_not(None),
        _has_tenant,
        sessions.c.subject == sa.bindparam("subject"),
    ],
}


@cache
def _sessions_after(owned: _Owned, *, lean: bool) -> Query:
    select = _SESSION.lean if lean else _SESSION.where
    return Query.of(select(_is_after, *_OWNED[owned]).order_by(sessions.c.session_id).limit(limit))


def _parameters(owner: Owner | None) -> dict[str, object]:
    """Return the parameters of the conditions on an owner."""
    return {} if owner is None else {"tenant": owner.tenant, "subject": owner.subject}


_POLICIES = Query.unlocked(
    sa.select(sessions.c.session_id, sessions.c.policy).where(sessions.c.session_id.in_(ids))
)
_SAVED_STATES = Query.unlocked(
    _SAVED_STATE.where(session_states.c.session_id == sa.bindparam("session_id")).order_by(
        session_states.c.version
    )
)
_SAVE_STATES = sa.insert(session_states)
_FORGET_STATES = sa.delete(session_states).where(
    session_states.c.session_id == sa.bindparam("session"), session_states.c.version <= sa.bindparam("last")
)
_after: sa.BindParameter[str] = sa.bindparam("after")
_heads = sa.select(*(sessions.c[name] for name in SessionHeadRecord._fields))
_tagged_heads = _heads.join(session_tags, session_tags.c.session_id == sessions.c.session_id).where(
    session_tags.c.tag == sa.bindparam("tag")
)


@cache
def _heads_query(owned: _Owned, *, has_tag: bool, newest_first: bool, is_first_page: bool) -> Query:
    key: sa.Column[Any] = session_tags.c.session_id if has_tag else sessions.c.session_id
    select = _tagged_heads if has_tag else _heads
    # A tag names its tenant.
    select = select if has_tag and owned is not _Owned.BY_SUBJECT else select.where(*_OWNED[owned])
    if not is_first_page:
        select = select.where(key < _after if newest_first else key > _after)
    return Query.unlocked(select.order_by(key.desc() if newest_first else key).limit(limit))


_INSERT_TAGS = sa.insert(session_tags)
_INSERT_SESSIONS = sa.insert(sessions)
_UPDATE_SESSIONS = Update(_SESSION, key="session_id", fields=("policy", "state", "version", "updated_at"))

_tasks_of_sessions = sa.select(tasks.c.task_id).where(tasks.c.session_id.in_(ids))
_DELETE_SESSIONS = (
    *deletes_of_tasks(_tasks_of_sessions),
    *(
        sa.delete(table).where(table.c.session_id.in_(ids))
        for table in (tasks, *TABLES_OF_SESSIONS, sessions)
    ),
)

_TASKS_BY_ID = Query.of(_TASK.where(tasks.c.task_id.in_(ids)), in_order_of=tasks.c.task_id)
_LEAN_TASKS_BY_ID = Query.of(_TASK.lean(tasks.c.task_id.in_(ids)), in_order_of=tasks.c.task_id)

# The position comes last, to order by it across statements and to cut it off.
_tasks_with_position = sa.select(*_TASK.lean_columns, tasks.c.position)
_TASKS_OF_SESSIONS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(ids)), in_order_of=tasks.c.task_id
)
_IDS_OF_SESSIONS = Query.of(
    sa.select(tasks.c.session_id, tasks.c.task_id, tasks.c.position).where(tasks.c.session_id.in_(ids)),
    in_order_of=tasks.c.task_id,
)
_sizes_in_session = (
    sa.select(
        tasks.c.task_id,
        tasks.c.created_at,
        tasks.c.position,
        sa.func.length(tasks.c.input)
        + sa.func.coalesce(sa.func.length(tasks.c.result), sa.literal_column("0")),
    )
    .where(tasks.c.session_id == sa.bindparam("session_id"))
    .order_by(tasks.c.created_at, tasks.c.position)
    .limit(limit)
)
_SIZES_IN_SESSION = Query.unlocked(_sizes_in_session)
_created_at = sa.bindparam("created_at", type_=tasks.c.created_at.type)
_SIZES_IN_SESSION_AFTER = Query.unlocked(
    _sizes_in_session.where(
        tasks.c.created_at >= _created_at,
        sa.or_(tasks.c.created_at > _created_at, tasks.c.position > sa.bindparam("position")),
    )
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

_unrouted_tasks = _TASK.lean(task_is_unrouted).order_by(tasks.c.redispatch_at, tasks.c.position).limit(limit)
_UNROUTED_TASKS = Query.of(_unrouted_tasks)
_UNROUTED_TASKS_BEFORE = Query.of(_unrouted_tasks.where(tasks.c.redispatch_at < sa.bindparam("due_before")))

_queued_tasks = (
    _TASK.lean(task_is_queued).order_by(tasks.c.redispatch_at.nulls_first(), tasks.c.position).limit(limit)
)
_QUEUED_TASKS = Query.of(_queued_tasks)
_QUEUED_TASKS_BEFORE = Query.of(_queued_tasks.where(tasks.c.redispatch_at < sa.bindparam("due_before")))
_HELD_TASKS = Query.of(_queued_tasks.where(task_target.in_(ids), task_needs_fitting_version))

_is_for_service = task_target == sa.bindparam("service_name")
_QUEUED_FOR = Query.of(
    _TASK.lean(task_is_queued, _is_for_service)
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
_QUEUED_SINCE = Query.unlocked(
    sa.select(tasks.c.service_name, sa.func.min(tasks.c.status_changed_at))
    .where(task_is_queued)
    .group_by(tasks.c.service_name)
)

_sleeping_tasks = (
    _TASK.lean(task_is_waiting, tasks.c.wake_at.is_not(None))
    .order_by(tasks.c.wake_at, tasks.c.position)
    .limit(limit)
)
_SLEEPING_TASKS = Query.of(_sleeping_tasks)
_SLEEPING_TASKS_BEFORE = Query.of(_sleeping_tasks.where(tasks.c.wake_at < sa.bindparam("due_before")))

_RETRIES = Query.unlocked(sa.select(tasks.c.retry_of, tasks.c.task_id).where(tasks.c.retry_of.in_(ids)))

_INSERT_TASKS = Inserts(_TASK)
_CHANGE_TASKS = Changes(_TASK, key="task_id", fixed=FIXED)


class SQLSessions(SQLRepository, SessionRepository):
    """Sessions in the table `sessions`."""

    def load(self, session_ids: Collection[str], *, lean: bool = False) -> dict[str, SessionRecord]:
        query = _LEAN_SESSIONS_BY_ID if lean else _SESSIONS_BY_ID
        found = map(_SESSION.record, self._access.rows_by_ids(query, session_ids))
        return {session.session_id: session for session in found}

    def page(
        self, *, owner: Owner | None = None, after: str = "", limit: int = 1000, lean: bool = False
    ) -> list[SessionRecord]:
        query = _sessions_after(_Owned.by(owner), lean=lean)
        rows = self._access.rows(query, {**_parameters(owner), "after": after, "limit": limit})
        return [_SESSION.record(row) for row in rows]

    def heads(
        self,
        *,
        owner: Owner | None = None,
        tag: str | None = None,
        after: str | None = None,
        newest_first: bool,
        limit: int,
    ) -> list[SessionHeadRecord]:
        query = _heads_query(
            _Owned.by(owner), has_tag=tag is not None, newest_first=newest_first, is_first_page=after is None
        )
        key = tag if tag is None or owner is None else owner.key_of(tag)
        rows = self._access.rows(query, {**_parameters(owner), "tag": key, "after": after, "limit": limit})
        return [SessionHeadRecord._make(row) for row in rows]

    def saved_states(self, session_id: str) -> list[SavedStateRecord]:
        return [
            _SAVED_STATE.record(row) for row in self._access.rows(_SAVED_STATES, {"session_id": session_id})
        ]

    def save_states(self, states: Sequence[SavedStateRecord], *, keep: int) -> None:
        self._access.write(_SAVE_STATES, _SAVED_STATE.rows(states))
        old = [each for each in states if each.version >= keep]
        parameters = [{"session": each.session_id, "last": each.version - keep} for each in old]
        self._access.write(_FORGET_STATES, parameters)

    def policies(self, session_ids: Collection[str]) -> dict[str, SessionPolicy]:
        rows = self._access.rows_by_ids(_POLICIES, session_ids)
        return {session_id: policy for session_id, policy in rows}  # noqa: C416 - mypy knows no pairs here

    def insert(self, sessions: Sequence[SessionRecord]) -> None:
        self._access.write(_INSERT_SESSIONS, _SESSION.rows(sessions))
        self._access.write(
            _INSERT_TAGS,
            [
                {"tag": internal_key(session.tenant, tag), "session_id": session.session_id}
                for session in sessions
                if session.tags != NO_TAGS
                for tag in json.loads(session.tags)
            ],
        )

    def update(self, sessions: Sequence[SessionRecord]) -> None:
        self._access.update(_UPDATE_SESSIONS, sessions)

    def delete(self, session_ids: Collection[str]) -> None:
        self._access.execute_for(_DELETE_SESSIONS, session_ids)


class SQLTasks(SQLRepository, TaskRepository):
    """Tasks in the table `tasks`."""

    def load(self, task_ids: Collection[str], *, lean: bool = False) -> dict[str, TaskRecord]:
        query = _LEAN_TASKS_BY_ID if lean else _TASKS_BY_ID
        found = map(_TASK.record, self._access.rows_by_ids(query, task_ids))
        return {task.task_id: task for task in found}

    def of_sessions(self, session_ids: Collection[str], *, open_only: bool = False) -> list[TaskRecord]:
        return self._in_order(_OPEN_TASKS_OF_SESSIONS if open_only else _TASKS_OF_SESSIONS, session_ids)

    def ids_of_sessions(self, session_ids: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        rows = self._access.rows_by_ids(_IDS_OF_SESSIONS, session_ids)
        for session_id, task_id, _ in sorted(rows, key=itemgetter(-1)):
            found.setdefault(session_id, []).append(task_id)
        return found

    def sizes_in_session(
        self, session_id: str, *, after: tuple[datetime, int] | None = None, limit: int
    ) -> list[TaskSizeRecord]:
        parameters: dict[str, object] = {"session_id": session_id, "limit": limit}
        if after is None:
            rows = self._access.rows(_SIZES_IN_SESSION, parameters)
        else:
            parameters["created_at"], parameters["position"] = after
            rows = self._access.rows(_SIZES_IN_SESSION_AFTER, parameters)
        return [TaskSizeRecord._make(row) for row in rows]

    def retries_of(self, task_ids: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for source_id, task_id in self._access.rows_by_ids(_RETRIES, task_ids):
            found.setdefault(source_id, []).append(task_id)
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

    def queued_since(self) -> dict[str, datetime]:
        return {name: since for name, since in self._access.rows(_QUEUED_SINCE, {})}  # noqa: C416 - typed

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
        self._access.insert(_INSERT_TASKS, tasks)

    def change(self, changes: Iterable[tuple[TaskRecord, TaskRecord]]) -> None:
        self._access.change(_CHANGE_TASKS, changes)

    def _due(self, every: Query, early: Query, due_before: datetime | None, limit: int) -> list[TaskRecord]:
        if due_before is None:
            rows = self._access.rows(every, {"limit": limit})
        else:
            rows = self._access.rows(early, {"due_before": due_before, "limit": limit})
        return [_TASK.record(row) for row in rows]

    def _in_order(self, query: Query, ids: Collection[str]) -> list[TaskRecord]:
        rows = sorted(self._access.rows_by_ids(query, ids), key=itemgetter(-1))
        return [_TASK.record(row[:-1]) for row in rows]
