"""Lists and counts of tasks in SQL.

A page is read from the index that answers most of its conditions, first only the keys, then the rows of those
that are shown. Open tasks and the ended ones of each status have indexes of their own, so a list may have
several sources, whose keys are merged here. Conditions that the index of a source does not answer are checked
row by row, for a bounded number of rows.

How many rows a query reads stands in its text. PostgreSQL would not use a plan twice whose limit it does not
know: it would plan such a query anew each time, once there are many tasks.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import sqlalchemy as sa

from llama_deploy.state_stores.list_repositories import (
    MAX_SCAN,
    ListedTask,
    ListKey,
    StepsRepository,
    TaskConditions,
    TaskListRepository,
    TaskPageRows,
    TaskPageRowsById,
)
from llama_deploy.state_stores.records import StepsRecord
from llama_deploy.state_stores.sql.access import SQLAccess, SQLRepository, chunks, limit, pad, upserts
from llama_deploy.state_stores.sql.prefixes import text_above, text_below, text_order
from llama_deploy.state_stores.sql.queries import Mapper, Query
from llama_deploy.state_stores.sql.sizes import utf8_length
from llama_deploy.state_stores.sql.tables import (
    owner_counts,
    session_is_of_tenant,
    task_counts,
    task_is_ended,
    task_is_of_subject,
    task_is_of_tenant,
    task_is_open,
    task_shown_status,
    task_steps,
    task_tags,
    tasks,
)
from llama_deploy.types import TaskStatus
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.types.owners import Owner

Key: TypeAlias = tuple[Any, ...]
"""What a source is ordered by."""

_MAX_RESULT_BYTES: Final = 16 * 1024
"""A larger result is not shown in a list."""
_LAST_CHARACTER: Final = "\U0010ffff"
_FIRST_SURROGATE, _LAST_SURROGATE = 0xD800, 0xDFFF  # no text may have these
_OPEN: Final = frozenset(status for status in TaskStatus if not status.is_terminal)
_ENDED: Final = tuple(status for status in TaskStatus if status.is_terminal)
_FIRST_KEY: Final = ListKey(datetime(1970, 1, 1, tzinfo=UTC), -1)
_LAST_KEY: Final = ListKey(datetime(9999, 1, 1, tzinfo=UTC), -1)

_MIN_KEYS: Final = 32
"""How many keys are read at least: short lists have the same queries."""

_POSITIONS: Final = "positions"
_STATUSES: Final = "statuses"
_failed_result = sa.case(
    (
        sa.and_(tasks.c.status != TaskStatus.SUCCEEDED, utf8_length(tasks.c.result) <= _MAX_RESULT_BYTES),
        tasks.c.result,
    )
).label("failed_result")
_shown_status = sa.type_coerce(task_shown_status, tasks.c.status.type).label("shown_status")
_listed = [_shown_status if name == "status" else tasks.c[name] for name in ListedTask._fields[:-1]]
_BY_POSITION = Query.unlocked(
    sa.select(*_listed, _failed_result).where(
        tasks.c.position.in_(sa.bindparam(_POSITIONS, expanding=True, type_=sa.BigInteger))
    )
)
_BY_ID = Query.unlocked(
    sa.select(*_listed, _failed_result).where(tasks.c.task_id.in_(sa.bindparam(_POSITIONS, expanding=True)))
)

# Their creation is named so that SQLite looks into the index of the open tasks.
_OPEN_COUNTS = Query.unlocked(
    sa.select(tasks.c.service_name, _shown_status, sa.func.count())
    .where(task_is_open, tasks.c.created_at >= sa.bindparam("low_at"))
    .group_by(tasks.c.service_name, _shown_status)
)
_ENDED_COUNTS = Query.unlocked(
    sa.select(
        task_counts.c.service_name,
        task_counts.c.status,
        sa.cast(sa.func.sum(task_counts.c.task_count), sa.BigInteger),
    )
    .where(task_counts.c.service_name >= sa.bindparam("first"))
    .group_by(task_counts.c.service_name, task_counts.c.status)
)

_has_tenant = tasks.c.tenant == sa.bindparam("tenant")
_has_subject = tasks.c.subject == sa.bindparam("subject")
HAS_TENANTS = Query.unlocked(
    sa.select(sa.literal_column("1")).where(session_is_of_tenant).limit(sa.literal_column("1"))
)
"""Whether another tenant than the default one has a session. Every task has one, too."""


def _open_counts(*conditions: sa.ColumnElement[bool]) -> Query:
    return Query.unlocked(
        sa.select(tasks.c.service_name, _shown_status, sa.func.count())
        .where(task_is_open, *conditions)
        .group_by(tasks.c.service_name, _shown_status)
    )


def _ended_counts(*conditions: sa.ColumnElement[bool]) -> Query:
    return Query.unlocked(
        sa.select(owner_counts.c.service_name, owner_counts.c.status, owner_counts.c.task_count).where(
            *conditions
        )
    )


_of_owner = (
    owner_counts.c.tenant == sa.bindparam("tenant"),
    owner_counts.c.subject == sa.bindparam("subject"),
)
_COUNTS_OF_TENANT = (_open_counts(task_is_of_tenant, _has_tenant), _ended_counts(*_of_owner))
_COUNTS_OF_SUBJECT = (_open_counts(task_is_of_subject, _has_tenant, _has_subject), _ended_counts(*_of_owner))
_COUNTS_OF_TENANTS = (
    _open_counts(task_is_of_tenant),
    _ended_counts(
        owner_counts.c.tenant > sa.literal_column("''"), owner_counts.c.subject == sa.literal_column("''")
    ),
)

_STEPS = Mapper(StepsRecord, task_steps)
_STEPS_AFTER = Query.unlocked(
    _STEPS.where(
        task_steps.c.task_id == sa.bindparam("task_id"),
        sa.tuple_(task_steps.c.attempt, task_steps.c.first)
        > sa.tuple_(sa.bindparam("attempt", type_=sa.BigInteger), sa.bindparam("first", type_=sa.BigInteger)),
    )
    .order_by(task_steps.c.attempt, task_steps.c.first)
    .limit(limit)
)
_PUT_STEPS = upserts(task_steps)


class _Index(StrEnum):
    """From which index a source is read."""

    OPEN = "open"
    ENDED = "ended"
    """Of one status."""
    ENDED_SERVICE = "ended_service"
    """Of one status, of one service."""
    SESSION = "session"
    PARENT = "parent"
    TENANT = "tenant"
    SUBJECT = "subject"
    TAG = "tag"
    ID = "id"


class _Shape(NamedTuple):
    """All that makes the text of a query differ from that of another one."""

    source: _Index
    newest_first: bool
    limit: int
    """The most keys that are returned. For a boundary, the key at this place is returned, counted from 1."""
    scan: int = 0
    """How many rows are checked, if conditions are checked row by row."""
    checks: frozenset[str] = frozenset()
    """The conditions that are checked row by row."""
    tag_count: int = 0
    """How many tags are checked row by row."""
    is_boundary: bool = False
    """Whether the query is for the last key of the window that is scanned."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Keys of one index, in the order of the list."""

    index: _Index
    parameters: Mapping[str, object]
    checks: Mapping[str, object] = field(default_factory=dict)
    """The parameters of conditions that the index does not answer, by name."""
    tags: Sequence[str] = ()
    """Tags that the index does not answer."""


_has_status = tasks.c.status == sa.bindparam("status")
_ANSWERED: Final[Mapping[_Index, Sequence[sa.ColumnElement[bool]]]] = {
    _Index.OPEN: [task_is_open],
    _Index.ENDED: [task_is_ended, _has_status],
    _Index.ENDED_SERVICE: [
        task_is_ended,
        tasks.c.service_name == sa.bindparam("service_name"),
        _has_status,
    ],
    _Index.SESSION: [tasks.c.session_id == sa.bindparam("session_id")],
    _Index.PARENT: [tasks.c.parent_task_id == sa.bindparam("parent_task_id")],
    _Index.TENANT: [task_is_of_tenant, _has_tenant],
    _Index.SUBJECT: [task_is_of_subject, _has_tenant, _has_subject],
    _Index.TAG: [task_tags.c.tag == sa.bindparam("tag")],
    _Index.ID: [],
}
"""The conditions that an index answers besides its order."""

_COVERED: Final[Mapping[_Index, Mapping[str, sa.ColumnElement[Any]]]] = {
    _Index.OPEN: {"service_name": tasks.c.service_name, _STATUSES: _shown_status},
    _Index.TAG: {"service_name": task_tags.c.service_name},
}
"""The conditions that are checked without reading the row of the task: its columns are in the index."""


@dataclass(frozen=True, slots=True)
class _Keys:
    """What was found in a source."""

    found: list[Key]
    complete_to: Key | None
    """Up to which key, inclusive. None: to the end."""


@cache
def _query(shape: _Shape) -> Query:
    """Return the query for keys of a source."""
    table = task_tags if shape.source is _Index.TAG else tasks
    by_id = shape.source is _Index.ID
    columns = [table.c.task_id] if by_id else [table.c.created_at, table.c.position]
    if by_id:
        order: list[Any] = [text_order(tasks.c.task_id)]
    else:
        order = [column.desc() if shape.newest_first else column for column in columns]
    bounds = [*_range(table, by_id=by_id), *_ANSWERED[shape.source]]
    keys = sa.select(*columns).where(*bounds).order_by(*order)
    if shape.is_boundary:
        return Query.unlocked(keys.limit(_number(1)).offset(_number(shape.limit - 1)))
    if not shape.checks and not shape.tag_count:
        return Query.unlocked(keys.limit(_number(shape.limit)))
    return Query.unlocked(_within_window(shape, keys, columns))


def _number(value: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(value), sa.Integer)


def _within_window(shape: _Shape, keys: sa.Select[Any], columns: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
    """Return the query for keys of a window that fulfil the conditions that are checked row by row."""
    # The limit within keeps the database from choosing another index for the conditions outside; and a value
    # in place of a join, from reading the whole table to join it.
    by_id = shape.source is _Index.ID
    covered = {
        name: column for name, column in _COVERED.get(shape.source, {}).items() if name in shape.checks
    }
    keys = keys.add_columns(*(column.label(f"its_{name}") for name, column in covered.items()))
    window = keys.limit(_number(shape.scan)).subquery()
    found = [window.c[column.name] for column in columns]
    outer: list[Any] = (
        [text_order(found[0])] if by_id else [c.desc() if shape.newest_first else c for c in found]
    )
    conditions = list(_checked(covered, {name: window.c[f"its_{name}"] for name in covered}))
    if shape.tag_count or shape.checks - covered.keys():
        is_it = tasks.c.task_id == found[0] if by_id else tasks.c.position == found[1]
        row = {_STATUSES: task_shown_status, **dict(tasks.c.items())}
        one: sa.ColumnClause[Any] = sa.literal_column("1")
        of_row = [*_checked(shape.checks - covered.keys(), row), *_tagged(shape.tag_count)]
        conditions.append(sa.select(one).where(is_it, *of_row).scalar_subquery() == one)
    return sa.select(*found).where(*conditions).order_by(*outer).limit(_number(shape.limit))


def _range(table: sa.Table, *, by_id: bool) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the condition that keys lie between two others."""
    if by_id:
        yield text_above(table.c.task_id, sa.bindparam("low", type_=sa.Text))
        yield text_below(table.c.task_id, sa.bindparam("high", type_=sa.Text))
        return
    key = sa.tuple_(table.c.created_at, table.c.position)
    for name, compare in (("low", key.__gt__), ("high", key.__lt__)):
        at = sa.bindparam(f"{name}_at", type_=table.c.created_at.type)
        position = sa.bindparam(f"{name}_position", type_=sa.BigInteger)
        yield compare(sa.tuple_(at, position))


def _checked(
    names: Collection[str], row: Mapping[str, sa.ColumnElement[Any]]
) -> Iterator[sa.ColumnElement[bool]]:
    """Yield conditions that are checked row by row, on these columns."""
    if _STATUSES in names:
        yield row[_STATUSES].in_(sa.bindparam(_STATUSES, expanding=True, type_=tasks.c.status.type))
    for name in ("service_name", "session_id", "parent_task_id", "tenant", "subject"):
        if name in names:
            yield row[name] == sa.bindparam(f"checked_{name}")
    if "created_from" in names:
        yield row["created_at"] >= sa.bindparam("created_from", type_=tasks.c.created_at.type)
    if "created_before" in names:
        yield row["created_at"] < sa.bindparam("created_before", type_=tasks.c.created_at.type)


def _tagged(count: int) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the conditions that a task has these tags."""
    for number in range(count):
        tag = task_tags.alias()
        yield (
            sa.select(sa.literal_column("1"))
            .where(
                tag.c.tag == sa.bindparam(f"tag_{number}"),
                tag.c.created_at == tasks.c.created_at,
                tag.c.position == tasks.c.position,
            )
            .exists()
        )


class SQLTaskLists(SQLRepository, TaskListRepository):
    """Lists and counts of the table `tasks`."""

    def page(
        self,
        conditions: TaskConditions,
        *,
        newest_first: bool = True,
        after: ListKey | None = None,
        limit: int = 100,
    ) -> TaskPageRows:
        low = _FIRST_KEY if conditions.created_from is None else ListKey(conditions.created_from, -1)
        high = _LAST_KEY if conditions.created_before is None else ListKey(conditions.created_before, -1)
        if after is not None:
            low, high = (low, min(high, after)) if newest_first else (max(low, after), high)
        found = [
            _Window(self._access, source, newest_first=newest_first).read(low, high, limit=limit + 1)
            for source in _sources(conditions, is_shared=self._is_shared(conditions.owner))
        ]
        keys, last = _merged(found, newest_first=newest_first, limit=limit)
        rows = self._listed(_BY_POSITION, [position for _, position in keys])
        by_key = {task.position: task for task in rows}
        listed = [by_key[position] for _, position in keys if position in by_key]
        return TaskPageRows(listed, None if last is None else ListKey(*last))

    def page_by_id(
        self, conditions: TaskConditions, *, after: str = "", limit: int = 100
    ) -> TaskPageRowsById:
        owner = conditions.owner
        prefix = conditions.prefix or ("" if owner is None or not owner.tenant else owner.key_of(""))
        checks = _checks(conditions, is_shared=self._is_shared(conditions.owner))
        times = {"created_from": conditions.created_from, "created_before": conditions.created_before}
        checks |= {name: at for name, at in times.items() if at is not None}
        source = _Source(_Index.ID, {}, checks, list(conditions.tags))
        # The id that equals the prefix has it too.
        low = max(after, _before(prefix))
        window = _Window(self._access, source, newest_first=False)
        found = window.read((low,), (prefix + _LAST_CHARACTER,), limit=limit + 1)
        keys, last = _merged([found], newest_first=False, limit=limit)
        rows = self._listed(_BY_ID, [task_id for (task_id,) in keys])
        by_id = {task.task_id: task for task in rows}
        listed = [by_id[task_id] for (task_id,) in keys if task_id in by_id]
        return TaskPageRowsById(listed, None if last is None else last[0])

    def counts(self, owner: Owner | None = None) -> Mapping[tuple[str, TaskStatus], int]:
        counts: Counter[tuple[str, TaskStatus]] = Counter()
        if owner is None or owner.is_default:
            self._count(counts, _OPEN_COUNTS, {"low_at": _FIRST_KEY.created_at})
            self._count(counts, _ENDED_COUNTS, {"first": ""})
            if self._is_shared(owner):
                for query in _COUNTS_OF_TENANTS:
                    self._count(counts, query, {}, sign=-1)
        else:
            of = {"tenant": owner.tenant, "subject": owner.subject or ""}
            for query in _COUNTS_OF_TENANT if owner.subject is None else _COUNTS_OF_SUBJECT:
                self._count(counts, query, of)
        return {of: count for of, count in counts.items() if count > 0}

    def _count(
        self,
        counts: Counter[tuple[str, TaskStatus]],
        query: Query,
        parameters: Mapping[str, object],
        *,
        sign: int = 1,
    ) -> None:
        for service_name, status, count in self._access.rows(query, parameters):
            counts[service_name, status] += sign * count

    def _is_shared(self, owner: Owner | None) -> bool:
        """Whether a list of the default tenant has to leave out tasks of other tenants."""
        if owner is None or owner.tenant:
            return False
        return any(True for _ in self._access.rows(HAS_TENANTS, {}))

    def _listed(self, query: Query, keys: Sequence[int | str]) -> Iterator[ListedTask]:
        for some in chunks(keys):
            for row in self._access.rows(query, {_POSITIONS: pad(some)}):
                yield ListedTask._make(row)


def _before(prefix: str) -> str:
    """Return a text that is less than any that begins with `prefix`, and not less than others that are."""
    if not prefix:
        return ""
    before = ord(prefix[-1]) - 1
    if before == _LAST_SURROGATE:
        before = _FIRST_SURROGATE - 1
    return prefix[:-1] + chr(before) + _LAST_CHARACTER


def _checks(conditions: TaskConditions, *, is_shared: bool) -> dict[str, object]:
    """Return the parameters of all conditions but those on the time and on tags.

    Of the owner, that is the subject; the tenant only if other tenants have tasks in the same indexes.
    """
    named = {name: getattr(conditions, name) for name in ("service_name", "session_id", "parent_task_id")}
    checks: dict[str, object] = {name: value for name, value in named.items() if value is not None}
    if conditions.statuses:
        checks[_STATUSES] = sorted(conditions.statuses)
    if is_shared:
        checks["tenant"] = DEFAULT_TENANT
    if conditions.owner is not None and conditions.owner.subject is not None:
        checks["subject"] = conditions.owner.subject
    return checks


def _sources(conditions: TaskConditions, *, is_shared: bool) -> list[_Source]:
    """Return the indexes from which a list is read; no task is in two of them."""
    checks, tags = _checks(conditions, is_shared=is_shared), list(conditions.tags)
    for index, column in ((_Index.SESSION, "session_id"), (_Index.PARENT, "parent_task_id")):
        if column in checks:
            return [_Source(index, {column: checks.pop(column)}, checks, tags)]
    owner = conditions.owner
    if owner is not None and owner.subject is not None:
        checks.pop("tenant", None)
        of = {"tenant": owner.tenant, "subject": checks.pop("subject")}
        return [_Source(_Index.SUBJECT, of, checks, tags)]
    if owner is not None and owner.tenant:
        return [_Source(_Index.TENANT, {"tenant": owner.tenant}, checks, tags)]
    if tags:
        return [_Source(_Index.TAG, {"tag": tags[0]}, checks, tags[1:])]
    statuses = conditions.statuses or frozenset(TaskStatus)
    sources: list[_Source] = []
    if statuses & _OPEN:
        if statuses >= _OPEN:
            checks.pop(_STATUSES, None)
        sources.append(_Source(_Index.OPEN, {}, checks))
    name = conditions.service_name
    left = {"tenant": DEFAULT_TENANT} if is_shared else {}
    for status in filter(statuses.__contains__, _ENDED):
        if name is None:
            sources.append(_Source(_Index.ENDED, {"status": status}, left))
        else:
            sources.append(_Source(_Index.ENDED_SERVICE, {"status": status, "service_name": name}, left))
    return sources


class _Window:
    """Reads keys of a source, from a growing window if conditions are checked row by row."""

    def __init__(self, access: SQLAccess, source: _Source, *, newest_first: bool) -> None:
        self._access = access
        self._source = source
        self._newest_first = newest_first
        self._checks = frozenset(source.checks)

    def read(self, low: Key, high: Key, *, limit: int) -> _Keys:
        """Return the first keys between two others that fulfil the conditions, `limit` or some more."""
        size = max(_MIN_KEYS, 1 << (limit - 1).bit_length())  # few numbers, and so few queries
        shape = _Shape(self._source.index, self._newest_first, size)
        if not self._checks and not self._source.tags:
            found = self._keys(shape, low, high)
            return _Keys(found, found[-1] if len(found) == size else None)
        found = []
        left, scan = MAX_SCAN, min(MAX_SCAN, 4 * size)
        while True:
            checking = shape._replace(scan=scan, checks=self._checks, tag_count=len(self._source.tags))
            found += self._keys(checking, low, high)
            if len(found) >= limit:
                return _Keys(found, found[-1])
            boundary = self._keys(shape._replace(limit=scan, is_boundary=True), low, high)
            if not boundary:
                return _Keys(found, None)
            left -= scan
            if left <= 0:
                return _Keys(found, boundary[0])
            low, high = (low, boundary[0]) if self._newest_first else (boundary[0], high)
            scan = min(left, 4 * scan)

    def _keys(self, shape: _Shape, low: Key, high: Key) -> list[Key]:
        parameters: dict[str, object] = {**self._source.parameters}
        if shape.source is _Index.ID:
            parameters |= {"low": low[0], "high": high[0]}
        else:
            parameters |= {"low_at": low[0], "low_position": low[1]}
            parameters |= {"high_at": high[0], "high_position": high[1]}
        if not shape.is_boundary:
            for name, value in self._source.checks.items():
                is_plain = name == _STATUSES or name.startswith("created")
                parameters[name if is_plain else f"checked_{name}"] = (
                    pad(value) if isinstance(value, list) else value
                )
            parameters |= {f"tag_{number}": tag for number, tag in enumerate(self._source.tags)}
        return [tuple(row) for row in self._access.rows(_query(shape), parameters)]


def _merged(found: Sequence[_Keys], *, newest_first: bool, limit: int) -> tuple[list[Key], Key | None]:
    """Return the first keys of several sources, and the last key up to which nothing is missing."""
    ends = [keys.complete_to for keys in found if keys.complete_to is not None]
    end = None if not ends else max(ends) if newest_first else min(ends)
    keys = sorted((key for keys in found for key in keys.found), reverse=newest_first)
    if end is not None:
        keys = [key for key in keys if (key >= end if newest_first else key <= end)]
    if len(keys) > limit:
        return keys[:limit], keys[limit - 1]
    return keys, end


class SQLSteps(SQLRepository, StepsRepository):
    """The steps of tasks in the table `task_steps`."""

    def load(self, task_id: str, *, after: tuple[int, int] = (0, -1), limit: int = 100) -> list[StepsRecord]:
        attempt, first = after
        parameters = {"task_id": task_id, "attempt": attempt, "first": first, "limit": limit}
        return [_STEPS.record(row) for row in self._access.rows(_STEPS_AFTER, parameters)]

    def put(self, steps: Collection[StepsRecord]) -> None:
        self._access.put(_PUT_STEPS, _STEPS.rows(list(steps)))
