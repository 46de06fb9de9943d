"""What retention reads and deletes, in SQL.

Ended tasks are read along the index of their status and end. Deleting goes by the primary keys of tasks.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from llama_deploy.state_stores.retention_rows import (
    EndedCount,
    EndedFilter,
    EndedTask,
    Place,
    RemovedTask,
    RetentionProgress,
    RetentionRepository,
    RowsOfTask,
)
from llama_deploy.state_stores.sql.access import SQLRepository, ids, limit, upserts
from llama_deploy.state_stores.sql.queries import KEY, Mapper, Query
from llama_deploy.state_stores.sql.sizes import utf8_length
from llama_deploy.state_stores.sql.tables import (
    UtcMicroseconds,
    event_packs,
    events,
    questions,
    removal_has_rest,
    removed_tasks,
    retention_progress,
    sessions,
    tasks,
)
from llama_deploy.state_stores.sql.task_tables import (
    TABLES_OF_QUESTIONS,
    TABLES_OF_SESSIONS,
    TABLES_OF_TASKS,
    deletes_of_tasks,
    number_column,
    text_columns,
)
from llama_deploy.types import TaskStatus

_REMOVED = Mapper(RemovedTask, removed_tasks)
_PROGRESS = Mapper(RetentionProgress, retention_progress)
_ENDED_STATUSES: Final = tuple(status for status in TaskStatus if status.is_terminal)
_FEW: Final = 8
"""How many rows are looked at first when rows of unknown size are deleted."""

_has_ended = tasks.c.finished_at.is_not(None)
_status = sa.bindparam("status", type_=tasks.c.status.type)
_before = sa.bindparam("before", type_=UtcMicroseconds())
_ended_at = sa.bindparam("ended_at", type_=UtcMicroseconds())
_position = sa.bindparam("position", type_=sa.BigInteger())

_ended = (
    sa.select(
        tasks.c.task_id,
        tasks.c.session_id,
        tasks.c.service_name,
        tasks.c.status,
        tasks.c.status_changed_at,
        tasks.c.position,
        tasks.c.created_at,
        tasks.c.stream_length,
        tasks.c.parent_task_id,
    )
    .where(tasks.c.status == _status, _has_ended, tasks.c.status_changed_at < _before)
    .order_by(tasks.c.status_changed_at, tasks.c.position)
    .limit(limit)
)
_ENDED = Query.unlocked(_ended)
_ENDED_AFTER = Query.unlocked(
    _ended.where(
        tasks.c.status_changed_at >= _ended_at,
        sa.or_(tasks.c.status_changed_at > _ended_at, tasks.c.position > _position),
    )
)

_parents = tasks.alias()
_STILL_ENDED = Query.unlocked(
    sa.select(tasks.c.task_id)
    .select_from(
        tasks.outerjoin(
            _parents, sa.and_(_parents.c.task_id == tasks.c.parent_task_id, _parents.c.finished_at.is_(None))
        )
    )
    .where(tasks.c.task_id.in_(ids), _has_ended, _parents.c.task_id.is_(None))
)
_INPUTS = Query.unlocked(sa.select(tasks.c.task_id, tasks.c.input).where(tasks.c.task_id.in_(ids)))


def _size_of_row(table: sa.Table) -> sa.ColumnElement[Any]:
    """Return about how many bytes the texts of a row take."""
    size: sa.ColumnElement[Any] = sa.literal_column("0", sa.BigInteger())
    for column in text_columns(table):
        size += sa.func.coalesce(utf8_length(column), sa.literal_column("0"))
    return size


def _sizes(table: sa.Table) -> Query:
    select: sa.Select[Any] = sa.select(table.c.task_id, sa.func.count(), sa.func.sum(_size_of_row(table)))
    return Query.unlocked(select.where(table.c.task_id.in_(ids)).group_by(table.c.task_id))


_SIZES = {table.name: _sizes(table) for table in TABLES_OF_TASKS}
_OWN_SIZES = Query.unlocked(sa.select(tasks.c.task_id, _size_of_row(tasks)).where(tasks.c.task_id.in_(ids)))
_zero = sa.literal_column("0", sa.BigInteger())
_all_rows = sa.union_all(
    sa.select(_zero.label("rows"), _size_of_row(tasks).label("bytes")).where(tasks.c.task_id.in_(ids)),
    *(
        sa.select(sa.literal_column("1", sa.BigInteger()), _size_of_row(table)).where(
            table.c.task_id.in_(ids)
        )
        for table in TABLES_OF_TASKS
    ),
).subquery()
# One row: threads compete for the interpreter with each statement, and with each row that is fetched.
_TOTAL_SIZE = Query.unlocked(
    sa.select(
        sa.func.coalesce(sa.func.sum(_all_rows.c.rows), _zero),
        sa.func.coalesce(sa.func.sum(_all_rows.c.bytes), _zero),
    )
)
_PRESENT = Query.unlocked(
    sa.select(
        sa.union_all(
            *(
                sa.select(sa.literal_column(f"'{table.name}'", sa.Text()).label("name")).where(
                    sa.exists().where(table.c.task_id.in_(ids))
                )
                for table in TABLES_OF_TASKS
            )
        )
        .subquery()
        .c.name
    )
)
_DELETE_TASKS = tuple(sa.delete(table).where(table.c.task_id.in_(ids)) for table in (tasks,))
_DELETE_ROWS = deletes_of_tasks(ids)
_OWNERS = tuple(table.name for table in (*TABLES_OF_QUESTIONS, *TABLES_OF_TASKS))
"""From which table each of these deletes."""

_task = sa.bindparam("task_id", type_=sa.Text())
_last = sa.bindparam("last", type_=sa.BigInteger())
_STREAM_TABLES: Final = (event_packs, events)
"""The tables of a stream. A pack holds events before those that have rows, so it is deleted before them."""
_TRIM_EVENTS = tuple(
    sa.delete(table).where(table.c.task_id == sa.bindparam(KEY), table.c.position < _last)
    for table in _STREAM_TABLES
)


class _Slices:
    """Deletes the rows of one task in one table, those first that have the smallest numbers."""

    def __init__(self, table: sa.Table, number: sa.Column[Any]) -> None:
        of_task = table.c.task_id == _task
        rows: sa.Select[Any] = sa.select(number, _size_of_row(table)).where(of_task, number < _last)
        self.rows = Query.unlocked(rows.order_by(number).limit(limit))
        self.delete = sa.delete(table).where(of_task, number <= sa.bindparam("bound", type_=sa.BigInteger()))


_SLICES = {
    table.name: _Slices(table, number)
    for table in TABLES_OF_TASKS
    if (number := number_column(table)) is not None
}
_BEYOND: Final = 2**62

# A task that was removed may have come back as a copy.
_PUT_REMOVED = upserts(removed_tasks)
_FORGET_REST = (sa.update(removed_tasks).where(removed_tasks.c.task_id.in_(ids)).values(has_rest=sa.false()),)
_WITH_REST = Query.unlocked(sa.select(removed_tasks.c.task_id).where(removal_has_rest).limit(limit))
_REMOVED_BY_ID = Query.unlocked(_REMOVED.where(removed_tasks.c.task_id.in_(ids)))
_ANY_REMOVED = Query.unlocked(sa.select(removed_tasks.c.task_id).limit(limit))
_OLD_REMOVED = Query.unlocked(
    sa.select(removed_tasks.c.task_id)
    .where(removed_tasks.c.removed_at < _before, sa.not_(removed_tasks.c.has_rest))
    .order_by(removed_tasks.c.removed_at)
    .limit(limit)
)
_DELETE_REMOVED = (sa.delete(removed_tasks).where(removed_tasks.c.task_id.in_(ids)),)

_UNTOUCHED_SESSIONS = Query.unlocked(
    sa.select(sessions.c.session_id, sessions.c.created_at).where(
        sessions.c.session_id.in_(ids), sessions.c.version == sa.literal_column("0")
    )
)
_SESSION_PAGE = Query.unlocked(
    sa.select(sessions.c.session_id, sessions.c.updated_at)
    .where(sessions.c.session_id > sa.bindparam("after"))
    .order_by(sessions.c.session_id)
    .limit(limit)
)
_SESSIONS_WITH_TASKS = Query.unlocked(
    sa.select(sessions.c.session_id).where(
        sessions.c.session_id.in_(ids),
        sa.exists().where(tasks.c.session_id == sessions.c.session_id),
    )
)
_LOCKED_SESSIONS = Query.of(
    sa.select(sessions.c.session_id).where(sessions.c.session_id.in_(ids)), in_order_of=sessions.c.session_id
)
_DELETE_SESSIONS = tuple(
    sa.delete(table).where(table.c.session_id.in_(ids)) for table in (*TABLES_OF_SESSIONS, sessions)
)

_progress = _PROGRESS.where(retention_progress.c.name == sa.bindparam("name"))
_TAKE_PROGRESS = Query(plain=_progress, locking=_progress.with_for_update(skip_locked=True))
_LOOK_AT_PROGRESS = Query.unlocked(_progress)
_PUT_PROGRESS = upserts(retention_progress)
_FORGET_PROGRESS = sa.delete(retention_progress).where(retention_progress.c.changed_at < _before)


class SQLRetention(SQLRepository, RetentionRepository):
    """Ended tasks in `tasks`, and what is left of removed ones in `removed_tasks`."""

    def ended(
        self, status: TaskStatus, *, before: datetime, after: Place | None = None, limit: int = 500
    ) -> list[EndedTask]:
        parameters = {"status": status, "before": before, "limit": limit}
        if after is None:
            rows = self._access.rows(_ENDED, parameters)
        else:
            rows = self._access.rows(_ENDED_AFTER, {**parameters, **after._asdict()})
        return [EndedTask._make(row) for row in rows]

    def newest(self, which: EndedFilter, *, count: int) -> datetime | None:
        parameters = {**_values(which), "limit": 1, "count": count - 1}
        return next((row[0] for row in self._access.rows(_newest(*_shape(which)), parameters)), None)

    def counts(self, which: EndedFilter, *, before: datetime) -> list[EndedCount]:
        rows = self._access.rows(_counts(*_shape(which)), {**_values(which), "before": before})
        return [EndedCount._make(row) for row in rows]

    def still_ended(self, task_ids: Collection[str]) -> set[str]:
        return {row[0] for row in self._access.rows_by_ids(_STILL_ENDED, task_ids)}

    def inputs(self, task_ids: Collection[str]) -> dict[str, str]:
        return {row[0]: row[1] for row in self._access.rows_by_ids(_INPUTS, task_ids)}

    def total_size(self, task_ids: Collection[str]) -> RowsOfTask:
        found = self._access.rows_by_ids(_TOTAL_SIZE, task_ids)
        return RowsOfTask(sum(int(rows) for rows, _ in found), sum(int(size) for _, size in found))

    def sizes(self, task_ids: Collection[str]) -> dict[str, RowsOfTask]:
        others = self._sizes_in(_SIZES.values(), task_ids)
        sizes: dict[str, RowsOfTask] = {}
        for task_id, own in self._access.rows_by_ids(_OWN_SIZES, task_ids):
            rows, size = others.get(task_id, (0, 0))
            sizes[task_id] = RowsOfTask(rows, size + int(own))
        return sizes

    def event_sizes(self, task_ids: Collection[str]) -> dict[str, RowsOfTask]:
        return self._sizes_in([_SIZES[table.name] for table in _STREAM_TABLES], task_ids)

    def remove(self, tasks: Sequence[RemovedTask]) -> None:
        if not tasks:
            return
        self._access.put(_PUT_REMOVED, _REMOVED.rows(tasks))
        whole = [task.task_id for task in tasks if not task.has_rest]
        # Most tasks have rows in few tables.
        present = {row[0] for row in self._access.rows_by_ids(_PRESENT, whole)}
        owners = present | {each.name for each in TABLES_OF_QUESTIONS if questions.name in present}
        deletes = [each for name, each in zip(_OWNERS, _DELETE_ROWS, strict=True) if name in owners]
        self._access.execute_for(deletes, whole)
        self._access.execute_for(_DELETE_TASKS, [task.task_id for task in tasks])

    def delete_rest(self, task_id: str, *, max_rows: int, max_bytes: int) -> bool:
        if not self._delete_slices(_SLICES, task_id, last=_BEYOND, max_rows=max_rows, max_bytes=max_bytes):
            return False
        self._access.execute_for(_DELETE_ROWS, [task_id])
        self._access.execute_for(_FORGET_REST, [task_id])
        return True

    def with_rest(self, *, limit: int) -> list[str]:
        return [row[0] for row in self._access.rows(_WITH_REST, {"limit": limit})]

    def trim_events(self, lasts: Mapping[str, int]) -> None:
        for statement in _TRIM_EVENTS:
            self._access.write(statement, [{KEY: task_id, "last": last} for task_id, last in lasts.items()])

    def trim_some_events(self, task_id: str, *, last: int, max_rows: int, max_bytes: int) -> bool:
        names = [table.name for table in _STREAM_TABLES]
        return self._delete_slices(names, task_id, last=last, max_rows=max_rows, max_bytes=max_bytes)

    def removed(self, task_ids: Collection[str]) -> dict[str, RemovedTask]:
        found = map(_REMOVED.record, self._access.rows_by_ids(_REMOVED_BY_ID, task_ids))
        return {task.task_id: task for task in found}

    def has_removed(self) -> bool:
        return bool(list(self._access.rows(_ANY_REMOVED, {"limit": 1})))

    def forget_removed(self, *, before: datetime, limit: int) -> int:
        old = [row[0] for row in self._access.rows(_OLD_REMOVED, {"before": before, "limit": limit})]
        self._access.execute_for(_DELETE_REMOVED, old)
        return len(old)

    def untouched_sessions(self, session_ids: Collection[str]) -> dict[str, datetime]:
        return {row[0]: row[1] for row in self._access.rows_by_ids(_UNTOUCHED_SESSIONS, session_ids)}

    def session_page(self, *, after: str, limit: int) -> list[tuple[str, datetime]]:
        return [
            (row[0], row[1]) for row in self._access.rows(_SESSION_PAGE, {"after": after, "limit": limit})
        ]

    def delete_empty_sessions(self, session_ids: Collection[str]) -> set[str]:
        # A task of a session is accepted under the lock of its row.
        locked = {row[0] for row in self._access.rows_by_ids(_LOCKED_SESSIONS, session_ids)}
        empty = locked - {row[0] for row in self._access.rows_by_ids(_SESSIONS_WITH_TASKS, locked)}
        self._access.execute_for(_DELETE_SESSIONS, empty)
        return empty

    def take_progress(self, name: str) -> RetentionProgress | None:
        return self._find_progress(_TAKE_PROGRESS, name)

    def progress(self, name: str) -> RetentionProgress | None:
        return self._find_progress(_LOOK_AT_PROGRESS, name)

    def put_progress(self, progress: RetentionProgress) -> None:
        self._access.put(_PUT_PROGRESS, _PROGRESS.rows([progress]))

    def forget_progress(self, *, before: datetime) -> None:
        self._access.write(_FORGET_PROGRESS, [{"before": before}])

    def _find_progress(self, query: Query, name: str) -> RetentionProgress | None:
        return next(map(_PROGRESS.record, self._access.rows(query, {"name": name})), None)

    def _sizes_in(self, queries: Iterable[Query], task_ids: Collection[str]) -> dict[str, RowsOfTask]:
        rows: defaultdict[str, int] = defaultdict(int)
        sizes: defaultdict[str, int] = defaultdict(int)
        for query in queries:
            for task_id, count, size in self._access.rows_by_ids(query, task_ids):
                rows[task_id] += count
                sizes[task_id] += int(size)
        return {task_id: RowsOfTask(count, sizes[task_id]) for task_id, count in rows.items()}

    def _delete_slices(
        self, tables: Iterable[str], task_id: str, *, last: int, max_rows: int, max_bytes: int
    ) -> bool:
        """Delete rows of a task from one table after the other; return whether none is left."""
        for name in tables:
            rows, size, is_done = self._delete_slice(
                name, task_id, last=last, max_rows=max_rows, max_bytes=max_bytes
            )
            max_rows, max_bytes = max_rows - rows, max_bytes - size
            if not is_done or max_rows <= 0 or max_bytes <= 0:
                return False
        return True

    def _delete_slice(
        self, table: str, task_id: str, *, last: int, max_rows: int, max_bytes: int
    ) -> tuple[int, int, bool]:
        """Delete the first rows of a task; return how many, their size, and whether none is left."""
        slices = _SLICES[table]
        parameters = {"task_id": task_id, "last": last}
        count = size = 0
        while count < max_rows and size < max_bytes:
            # Few rows at first: each may take megabytes, and their sizes are not known before they are read.
            wanted = min(max_rows - count, max(_FEW, count))
            found = list(self._access.rows(slices.rows, {**parameters, "limit": wanted}))
            bound = None
            for number, row_size in found:
                bound, count, size = number, count + 1, size + int(row_size)
                if size >= max_bytes:
                    break
            if bound is not None:
                self._access.connection.execute(slices.delete, {"task_id": task_id, "bound": bound})
            if len(found) < wanted and bound == (found[-1][0] if found else None):
                return count, size, True
        return count, size, False


def _shape(which: EndedFilter) -> tuple[tuple[TaskStatus, ...], bool, bool]:
    """Return what the text of a statement depends on."""
    statuses = which.statuses or _ENDED_STATUSES
    return statuses, which.service_name is not None, which.session_id is not None


def _values(which: EndedFilter) -> dict[str, object]:
    values = {"service_name": which.service_name, "session_id": which.session_id}
    return {name: value for name, value in values.items() if value is not None}


def _conditions(status: TaskStatus, *, by_service: bool, by_session: bool) -> list[sa.ColumnElement[bool]]:
    conditions = [tasks.c.status == sa.literal_column(f"'{status.value}'"), _has_ended]
    if by_service:
        conditions.append(tasks.c.service_name == sa.bindparam("service_name"))
    if by_session:
        conditions.append(tasks.c.session_id == sa.bindparam("session_id"))
    return conditions


@cache
def _newest(statuses: tuple[TaskStatus, ...], by_service: bool, by_session: bool) -> Query:  # noqa: FBT001
    # One part for each status, because each is in the order of the index, and the database merges them.
    parts = [
        sa.select(tasks.c.status_changed_at.label("ended_at")).where(
            *_conditions(status, by_service=by_service, by_session=by_session)
        )
        for status in statuses
    ]
    ends = sa.union_all(*parts).subquery()
    newest_first = sa.select(ends.c.ended_at).order_by(ends.c.ended_at.desc())
    return Query.unlocked(newest_first.limit(limit).offset(sa.bindparam("count", type_=sa.BigInteger())))


@cache
def _counts(statuses: tuple[TaskStatus, ...], by_service: bool, by_session: bool) -> Query:  # noqa: FBT001
    parts = [
        sa.select(tasks.c.service_name, tasks.c.status, tasks.c.status_changed_at).where(
            *_conditions(status, by_service=by_service, by_session=by_session),
            tasks.c.status_changed_at < _before,
        )
        for status in statuses
    ]
    ended = sa.union_all(*parts).subquery()
    group = (ended.c.service_name, ended.c.status)
    return Query.unlocked(
        sa.select(*group, sa.func.count(), sa.func.min(ended.c.status_changed_at, type_=UtcMicroseconds()))
        .group_by(*group)
        .order_by(*group)
    )
