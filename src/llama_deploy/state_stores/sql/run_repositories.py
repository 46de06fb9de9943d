"""What belongs to a task, in SQL: its event stream, its inbox and its run."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from llama_deploy.state_stores.records import (
    EventRecord,
    InboxRecord,
    JournalRecord,
    RunGroupRecord,
    RunHeadRecord,
    RunNeedsRecord,
)
from llama_deploy.state_stores.repositories import EventRepository, InboxRepository, RunRepository
from llama_deploy.state_stores.sql.access import IDS, SQLRepository, chunks, ids, limit, pad, upserts
from llama_deploy.state_stores.sql.queries import KEY, Mapper, Query
from llama_deploy.state_stores.sql.sizes import utf8_length
from llama_deploy.state_stores.sql.tables import (
    events,
    inbox,
    journal,
    runs,
    task_is_choosy,
    task_is_published_suspect,
    task_is_queued,
    task_is_waiting,
    task_target,
    tasks,
)

_KEYS: Final = "keys"
_LIVING: Final = "living"
_MAX_LIVING: Final = 256
"""How many living versions are left out of `groups`; the fit of the tasks of others is compared."""
_NOBODY: Final = ""
_SPACE: Final[sa.ColumnClause[str]] = sa.literal_column("' '")
_PAIRS_PER_STATEMENT: Final = 32
"""Few, because the database looks for every key of a statement in every task of it."""

_EVENT = Mapper(EventRecord, events)
_INBOX = Mapper(InboxRecord, inbox)
_RUN = Mapper(RunHeadRecord, runs)
_JOURNAL = Mapper(JournalRecord, journal)

_EVENTS_AFTER = Query.unlocked(
    _EVENT.where(events.c.task_id == sa.bindparam("task_id"), events.c.position > sa.bindparam("after"))
    .order_by(events.c.position)
    .limit(limit)
)
_events = events.alias()
_sizes = (
    sa.select(_events.c.position, utf8_length(_events.c.data).label("size"))
    .where(_events.c.task_id == sa.bindparam("task_id"), _events.c.position > sa.bindparam("after"))
    .order_by(_events.c.position)
    .limit(limit)
    .subquery()
)
_size_before = sa.func.sum(_sizes.c.size).over(order_by=_sizes.c.position) - _sizes.c.size
_totals = sa.select(_sizes.c.position, _size_before.label("size_before")).subquery()
_last_of_page = sa.select(sa.func.max(_totals.c.position)).where(
    _totals.c.size_before < sa.bindparam("max_bytes", type_=sa.BigInteger)
)
_PAGE_OF_EVENTS = Query.unlocked(
    _EVENTS_AFTER.plain.where(events.c.position <= _last_of_page.scalar_subquery())
)
"""For databases whose driver reads all rows of a query."""
_INSERT_EVENTS = sa.insert(events)

_INBOX_BY_TASK = Query.unlocked(_INBOX.where(inbox.c.task_id.in_(ids), inbox.c.consumed.is_(sa.false())))
_INBOX_SIZES = Query.unlocked(
    sa.select(inbox.c.task_id, sa.func.sum(utf8_length(inbox.c.event)))
    .where(inbox.c.task_id.in_(ids), inbox.c.consumed.is_(sa.false()))
    .group_by(inbox.c.task_id)
)
_INBOX_KEYS = Query.unlocked(
    sa.select(inbox.c.task_id, inbox.c.idempotency_key).where(
        inbox.c.task_id.in_(ids), inbox.c.idempotency_key.in_(sa.bindparam(_KEYS, expanding=True))
    )
)
_INSERT_INBOX = sa.insert(inbox)
_CONSUME_INBOX = (
    sa.update(inbox)
    .where(inbox.c.task_id == sa.bindparam(KEY), inbox.c.seq == sa.bindparam("number"))
    .values(consumed=sa.true())
)
_RESTORE_INBOX = (
    sa.update(inbox).where(inbox.c.task_id.in_(ids), inbox.c.consumed).values(consumed=sa.false())
)

_RUNS_BY_TASK = Query.unlocked(_RUN.where(runs.c.task_id.in_(ids)))
_NEEDS_BY_TASK = Query.unlocked(
    sa.select(runs.c.task_id, runs.c.fingerprint, runs.c.needs).where(runs.c.task_id.in_(ids))
)
_group = (task_target, tasks.c.version, tasks.c.pinned_to, runs.c.fingerprint, runs.c.needs)
_is_grouped = sa.and_(
    task_is_choosy,
    task_target.in_(ids),
    sa.or_(
        tasks.c.version.is_(None),
        tasks.c.pinned_to.is_not(None),
        (task_target + _SPACE + tasks.c.version).not_in(sa.bindparam(_LIVING, expanding=True)),
    ),
)
# The statuses one by one: each has a partial index.
_GROUPS = tuple(
    Query.unlocked(
        sa.select(*_group, sa.func.count())
        .select_from(tasks.outerjoin(runs, runs.c.task_id == tasks.c.task_id))
        .where(has_status, _is_grouped)
        .group_by(*_group)
    )
    for has_status in (task_is_queued, task_is_waiting)
)
# In the order of their index, which is smaller than that of all queued tasks.
_some = (
    sa.select(tasks.c.task_id, task_target.label("target"), tasks.c.version, tasks.c.pinned_to)
    .where(task_is_published_suspect, _is_grouped)
    .order_by(tasks.c.service_name, tasks.c.routed_to)
    .limit(limit)
    .subquery()
)
_suspect_group = (_some.c.target, _some.c.version, _some.c.pinned_to, runs.c.fingerprint, runs.c.needs)
_SUSPECTS = Query.unlocked(
    sa.select(*_suspect_group, sa.func.count())
    .select_from(_some.outerjoin(runs, runs.c.task_id == _some.c.task_id))
    .group_by(*_suspect_group)
)
_JOURNAL_BY_TASK = Query.unlocked(_JOURNAL.where(journal.c.task_id.in_(ids)))
_INSERT_JOURNAL = sa.insert(journal)
_TRIM_JOURNAL = sa.delete(journal).where(
    journal.c.task_id == sa.bindparam(KEY), journal.c.seq < sa.bindparam("length")
)
_DELETE_RUNS = tuple(sa.delete(table).where(table.c.task_id.in_(ids)) for table in (journal, runs))
_PUT_RUNS = upserts(runs, keeps=True)


class SQLEvents(SQLRepository, EventRepository):
    """Event streams in the table `events`."""

    def load(
        self, task_id: str, *, after: int = -1, limit: int = 1000, max_bytes: int | None = None
    ) -> list[EventRecord]:
        parameters = {"task_id": task_id, "after": after, "limit": limit}
        if max_bytes is None:
            return [_EVENT.record(row) for row in self._access.rows(_EVENTS_AFTER, parameters)]
        rows = self._access.scan(_EVENTS_AFTER, parameters)
        if rows is None:
            page = self._access.rows(_PAGE_OF_EVENTS, {**parameters, "max_bytes": max_bytes})
            return [_EVENT.record(row) for row in page]
        with closing(rows):
            return _page(map(_EVENT.record, rows), max_bytes)

    def insert(self, events: Sequence[EventRecord]) -> None:
        self._access.write(_INSERT_EVENTS, _EVENT.rows(events))


def _page(events: Iterable[EventRecord], max_bytes: int) -> list[EventRecord]:
    """Return the first events, up to the one with which their data has so many bytes."""
    page: list[EventRecord] = []
    left = max_bytes
    for event in events:
        page.append(event)
        left -= event.data_bytes
        if left <= 0:
            break
    return page


class SQLInbox(SQLRepository, InboxRepository):
    """Inbox entries in the table `inbox`."""

    def load(self, task_ids: Collection[str]) -> list[InboxRecord]:
        found = map(_INBOX.record, self._access.rows_by_ids(_INBOX_BY_TASK, task_ids))
        return sorted(found, key=attrgetter("task_id", "seq"))

    def sizes(self, task_ids: Collection[str]) -> dict[str, int]:
        rows = self._access.rows_by_ids(_INBOX_SIZES, task_ids)
        return {task_id: int(size) for task_id, size in rows}

    def known_keys(self, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        known: set[tuple[str, str]] = set()
        for pairs in chunks(keys, _PAIRS_PER_STATEMENT):
            parameters = {
                IDS: pad({task_id for task_id, _ in pairs}),
                _KEYS: pad({key for _, key in pairs}),
            }
            known.update((task_id, key) for task_id, key in self._access.rows(_INBOX_KEYS, parameters))
        return known & set(keys)

    def insert(self, entries: Sequence[InboxRecord]) -> None:
        self._access.write(_INSERT_INBOX, _INBOX.rows(entries))

    def consume(self, entries: Collection[tuple[str, int]]) -> None:
        self._access.write(_CONSUME_INBOX, [{KEY: task_id, "number": seq} for task_id, seq in entries])

    def restore(self, task_ids: Collection[str]) -> None:
        self._access.change((_RESTORE_INBOX,), task_ids)


class SQLRuns(SQLRepository, RunRepository):
    """Runs in the tables `runs` and `journal`."""

    def load(self, task_ids: Collection[str]) -> dict[str, RunHeadRecord]:
        found = map(_RUN.record, self._access.rows_by_ids(_RUNS_BY_TASK, task_ids))
        return {run.task_id: run for run in found}

    def load_needs(self, task_ids: Collection[str]) -> dict[str, RunNeedsRecord]:
        rows = self._access.rows_by_ids(_NEEDS_BY_TASK, task_ids)
        return {task_id: RunNeedsRecord(*needs) for task_id, *needs in rows}

    def groups(
        self, service_names: Collection[str], *, living: Collection[tuple[str, str]]
    ) -> list[RunGroupRecord]:
        counts: Counter[tuple[Any, ...]] = Counter()
        known = _known(living)
        for query in _GROUPS:
            for names in chunks(service_names):
                for *group, count in self._access.rows(query, {IDS: pad(names), _LIVING: known}):
                    counts[tuple(group)] += count
        return [RunGroupRecord._make((*group, count)) for group, count in counts.items()]

    def suspects(
        self, service_names: Collection[str], *, living: Collection[tuple[str, str]], limit: int = 10_000
    ) -> list[RunGroupRecord]:
        parameters = {_LIVING: _known(living), "limit": limit}
        return [
            RunGroupRecord._make(row)
            for names in chunks(service_names)
            for row in self._access.rows(_SUSPECTS, {IDS: pad(names), **parameters})
        ]

    def put(self, runs: Sequence[RunHeadRecord]) -> None:
        self._access.put(_PUT_RUNS, _RUN.rows(runs))

    def delete(self, task_ids: Collection[str]) -> None:
        self._access.change(_DELETE_RUNS, task_ids)

    def load_journal(self, task_ids: Collection[str]) -> list[JournalRecord]:
        found = map(_JOURNAL.record, self._access.rows_by_ids(_JOURNAL_BY_TASK, task_ids))
        return sorted(found, key=attrgetter("task_id", "seq"))

    def insert_journal(self, entries: Sequence[JournalRecord]) -> None:
        self._access.write(_INSERT_JOURNAL, _JOURNAL.rows(entries))

    def trim_journal(self, lengths: Mapping[str, int]) -> None:
        rows: list[dict[str, object]] = [
            {KEY: task_id, "length": length} for task_id, length in lengths.items()
        ]
        self._access.write(_TRIM_JOURNAL, rows)


def _known(living: Collection[tuple[str, str]]) -> Sequence[str]:
    """Return the parameter for the versions that are left out."""
    # A database limits the parameters of a statement, and few versions live.
    return pad([_NOBODY, *(f"{name} {version}" for name, version in living)][:_MAX_LIVING])
