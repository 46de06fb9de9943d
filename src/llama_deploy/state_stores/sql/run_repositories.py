"""What belongs to a task, in SQL: its event stream, its inbox and its run."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from llama_deploy.state_stores.records import (
    EventPackRecord,
    EventRecord,
    InboxRecord,
    JournalRecord,
    JournalStartRecord,
    RunCopy,
    RunGroupRecord,
    RunHeadRecord,
    RunNeedsRecord,
    RunPastRecord,
    RunSizeRecord,
)
from llama_deploy.state_stores.repositories import EventRepository, InboxRepository, RunRepository
from llama_deploy.state_stores.sql.access import (
    IDS,
    SQLRepository,
    chunks,
    ids,
    limit,
    pad,
    upserts,
)
from llama_deploy.state_stores.sql.pack_rows import PackRows
from llama_deploy.state_stores.sql.queries import KEY, Mapper, Query
from llama_deploy.state_stores.sql.sizes import utf8_length
from llama_deploy.state_stores.sql.tables import (
    events,
    inbox,
    journal,
    run_past,
    runs,
    task_is_published_suspect,
    task_is_queued,
    task_is_waiting,
    task_needs_fitting_version,
    task_target,
    tasks,
)

_COPY_OF: Final = "copy_of"
_COPY_TO: Final = "copy_to"
_COPY_ORIGIN: Final = "copy_origin"
_COPY_LENGTH: Final = "copy_length"
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
_PAST = Mapper(RunPastRecord, run_past)


def _copying(
    table: sa.Table, conditions: Sequence[sa.ColumnElement[bool]] = (), *, origin: bool = False
) -> sa.Insert:
    """Return the statement that copies the rows of one task for another one."""
    new: dict[str, sa.BindParameter[str]] = {"task_id": sa.bindparam(_COPY_TO, type_=sa.Text)}
    if origin:
        new["origin"] = sa.bindparam(_COPY_ORIGIN, type_=sa.Text)
    rows = sa.select(*(new.get(column.name, column) for column in table.c))
    names = [column.name for column in table.c]
    return sa.insert(table).from_select(
        names, rows.where(table.c.task_id == sa.bindparam(_COPY_OF), *conditions), include_defaults=False
    )


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
_WHOLE_INBOX = Query.unlocked(
    sa.select(*_INBOX.columns, inbox.c.consumed)
    .where(inbox.c.task_id == sa.bindparam("task_id"))
    .order_by(inbox.c.seq)
)
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
_COPY_INBOX = _copying(inbox)

_RUNS_BY_TASK = Query.unlocked(_RUN.where(runs.c.task_id.in_(ids)))


def _size_of(column: sa.Column[Any]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(utf8_length(column), sa.literal_column("0"))


_HEAD_SIZES = Query.unlocked(
    sa.select(
        runs.c.task_id,
        _size_of(runs.c.snapshot) + _size_of(runs.c.needs),
        _size_of(runs.c.state),
        runs.c.format,
        runs.c.snapshots,
    ).where(runs.c.task_id.in_(ids))
)
_JOURNAL_STARTS = Query.unlocked(
    sa.select(runs.c.task_id, *(runs.c[name] for name in JournalStartRecord._fields)).where(
        runs.c.task_id.in_(ids)
    )
)
_JOURNAL_SIZES = Query.unlocked(
    sa.select(journal.c.task_id, sa.func.sum(utf8_length(journal.c.entry)))
    .where(journal.c.task_id.in_(ids))
    .group_by(journal.c.task_id)
)
_NEEDS_BY_TASK = Query.unlocked(
    sa.select(runs.c.task_id, runs.c.fingerprint, runs.c.needs).where(runs.c.task_id.in_(ids))
)
_group = (task_target, tasks.c.version, tasks.c.pinned_to, runs.c.fingerprint, runs.c.needs)
_is_grouped = sa.and_(
    task_needs_fitting_version,
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
_DELETE_RUNS = tuple(sa.delete(table).where(table.c.task_id.in_(ids)) for table in (journal, run_past, runs))
_PUT_RUNS = upserts(runs, skips_none=True)
_COPY_RUNS = _copying(runs, origin=True)
_COPY_JOURNALS = _copying(journal)
_COPY_ENTRIES = _copying(journal, (journal.c.seq < sa.bindparam(_COPY_LENGTH, type_=sa.BigInteger()),))
_ENTRY_COUNT = Query.unlocked(
    sa.select(sa.func.count()).select_from(journal).where(journal.c.task_id == sa.bindparam("task_id"))
)
_PAST_OF_TASK = Query.unlocked(
    _PAST.where(run_past.c.task_id == sa.bindparam("task_id")).order_by(run_past.c.seq, run_past.c.snapshots)
)
_PUT_PAST = upserts(run_past, skips_none=True)
_later = run_past.alias()
_writes_before = _later.c.seq + _later.c.snapshots
_size_from = sa.func.sum(_later.c.size).over(order_by=_writes_before.desc())
_sizes_from = (
    sa.select(_writes_before.label("writes_before"), _size_from.label("size"))
    .where(_later.c.task_id == sa.bindparam(KEY))
    .subquery()
)
_last_too_large = sa.select(sa.func.max(_sizes_from.c.writes_before)).where(
    _sizes_from.c.size > sa.bindparam("max_bytes", type_=sa.BigInteger())
)
_TRIM_PAST = sa.delete(run_past).where(
    run_past.c.task_id == sa.bindparam(KEY),
    run_past.c.seq + run_past.c.snapshots <= _last_too_large.scalar_subquery(),
)


class SQLEvents(SQLRepository, EventRepository):
    """Event streams in the table `events`, and the packs of their earlier parts."""

    def load(
        self, task_id: str, *, after: int = -1, limit: int = 1000, max_bytes: int | None = None
    ) -> list[EventRecord]:
        rows = self._rows(task_id, after=after, limit=limit, max_bytes=max_bytes)
        if rows and rows[0].position == after + 1:
            return rows
        packed = PackRows(self._access).events(task_id, after=after)
        return _page(islice(chain(packed, rows), limit), max_bytes)

    def _rows(
        self, task_id: str, *, after: int, limit: int, max_bytes: int | None = None
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

    def loose(self, task_id: str, *, limit: int = 1000, max_bytes: int | None = None) -> list[EventRecord]:
        rows = self._rows(task_id, after=-1, limit=limit, max_bytes=max_bytes)
        return [event for event in rows if not event.terminal]

    def last_pack(self, task_id: str) -> EventPackRecord | None:
        return PackRows(self._access).last(task_id)

    def put_packs(self, packs: Sequence[EventPackRecord]) -> None:
        PackRows(self._access).put(packs)


def _page(events: Iterable[EventRecord], max_bytes: int | None) -> list[EventRecord]:
    """Return the first events, up to the one with which their data has so many bytes."""
    if max_bytes is None:
        return list(events)
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

    def history(self, task_id: str) -> list[tuple[InboxRecord, bool]]:
        rows = self._access.rows(_WHOLE_INBOX, {"task_id": task_id})
        return [(_INBOX.record(row[:-1]), bool(row[-1])) for row in rows]

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
        self._access.execute_for((_RESTORE_INBOX,), task_ids)

    def copy(self, targets: Mapping[str, str]) -> None:
        rows: list[dict[str, object]] = [
            {_COPY_OF: source_id, _COPY_TO: target_id} for source_id, target_id in targets.items()
        ]
        self._access.write(_COPY_INBOX, rows)


class SQLRuns(SQLRepository, RunRepository):
    """Runs in the tables `runs` and `journal`."""

    def load(self, task_ids: Collection[str]) -> dict[str, RunHeadRecord]:
        found = map(_RUN.record, self._access.rows_by_ids(_RUNS_BY_TASK, task_ids))
        return {run.task_id: run for run in found}

    def sizes(self, task_ids: Collection[str]) -> dict[str, RunSizeRecord]:
        journals = dict(map(tuple, self._access.rows_by_ids(_JOURNAL_SIZES, task_ids)))
        heads = self._access.rows_by_ids(_HEAD_SIZES, task_ids)
        return {
            task_id: RunSizeRecord(int(size + journals.get(task_id, 0)), *rest)
            for task_id, size, *rest in heads
        }

    def load_journal_starts(self, task_ids: Collection[str]) -> dict[str, JournalStartRecord]:
        rows = self._access.rows_by_ids(_JOURNAL_STARTS, task_ids)
        return {task_id: JournalStartRecord(*start) for task_id, *start in rows}

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
        self._access.execute_for(_DELETE_RUNS, task_ids)

    def copy(self, copies: Sequence[RunCopy]) -> None:
        rows: list[dict[str, object]] = [
            {_COPY_OF: each.source_id, _COPY_TO: each.target_id} for each in copies
        ]
        self._access.write(_COPY_JOURNALS, rows)
        heads = [{**row, _COPY_ORIGIN: each.origin} for row, each in zip(rows, copies, strict=True)]
        self._access.write(_COPY_RUNS, heads)

    def copy_entries(self, source_id: str, target_id: str, *, length: int) -> None:
        rows: list[dict[str, object]] = [{_COPY_OF: source_id, _COPY_TO: target_id, _COPY_LENGTH: length}]
        self._access.write(_COPY_ENTRIES, rows)

    def count_entries(self, task_id: str) -> int:
        return next((int(count) for (count,) in self._access.rows(_ENTRY_COUNT, {"task_id": task_id})), 0)

    def load_past(self, task_id: str) -> list[RunPastRecord]:
        return list(map(_PAST.record, self._access.rows(_PAST_OF_TASK, {"task_id": task_id})))

    def put_past(self, records: Sequence[RunPastRecord]) -> None:
        self._access.put(_PUT_PAST, _PAST.rows(records))

    def trim_past(self, task_ids: Collection[str], *, max_bytes: int) -> None:
        self._access.write(_TRIM_PAST, [{KEY: task_id, "max_bytes": max_bytes} for task_id in task_ids])

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
