"""A store transaction over a SQLAlchemy connection, the same on every SQL database.

The statements are built once, when this module is imported, so that SQLAlchemy compiles each of them once per
database and the driver prepares it once per connection. Every method sends a fixed number of statements for
any number of rows, but for one more with every `_IDS_PER_STATEMENT` ids.
"""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from llama_deploy.state_stores.base import (
    PROGRESS,
    EventRecord,
    InboxRecord,
    InstanceRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
    ServiceRecord,
    SessionRecord,
    StoreTransaction,
    TaskRecord,
)
from llama_deploy.state_stores.queries import Connection, Mapper, Query
from llama_deploy.state_stores.tables import (
    events,
    inbox,
    instances,
    journal,
    outbox,
    runs,
    services,
    sessions,
    task_is_open,
    task_is_queued,
    task_is_running,
    task_is_sleeping,
    tasks,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
R = TypeVar("R", bound="DataclassInstance")

_IDS_PER_STATEMENT = 500
"""Databases limit the parameters of a statement: SQLite's smallest usual limit is 999."""

_PAIRS_PER_STATEMENT = 32
"""Few, because the database looks for every key of a statement in every task of it."""

_IDS = "ids"
_KEYS = "keys"
_KEY = "key"
_ids: sa.BindParameter[str] = sa.bindparam(_IDS, expanding=True)


_SESSION = Mapper(SessionRecord, sessions)
_TASK = Mapper(TaskRecord, tasks)
_EVENT = Mapper(EventRecord, events)
_INBOX = Mapper(InboxRecord, inbox)
_RUN = Mapper(RunHeadRecord, runs)
_JOURNAL = Mapper(JournalRecord, journal)
_OUTBOX = Mapper(OutboxRecord, outbox)
_SERVICE = Mapper(ServiceRecord, services)
_INSTANCE = Mapper(InstanceRecord, instances)


_SESSIONS_BY_ID = Query.of(
    sa.select(*_SESSION.columns).where(sessions.c.session_id.in_(_ids)), in_order_of=sessions.c.session_id
)
_SESSIONS_AFTER = Query.of(
    sa.select(*_SESSION.columns)
    .where(sessions.c.session_id > sa.bindparam("after"))
    .order_by(sessions.c.session_id)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_TASKS_BY_ID = Query.of(
    sa.select(*_TASK.columns).where(tasks.c.task_id.in_(_ids)), in_order_of=tasks.c.task_id
)

# The position comes last, to order by it across statements and to cut it off.
_tasks_with_position = sa.select(*_TASK.columns, tasks.c.position)
_TASKS_OF_SESSIONS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(_ids)), in_order_of=tasks.c.task_id
)
_OPEN_TASKS_OF_SESSIONS = Query.of(
    _tasks_with_position.where(tasks.c.session_id.in_(_ids), task_is_open), in_order_of=tasks.c.task_id
)
_TASKS_OF_INSTANCES = Query.of(
    _tasks_with_position.where(tasks.c.instance_id.in_(_ids), task_is_running), in_order_of=tasks.c.task_id
)

_queued_tasks = (
    sa.select(*_TASK.columns)
    .where(task_is_queued)
    .order_by(tasks.c.redispatch_at.nulls_first(), tasks.c.position)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_QUEUED_TASKS = Query.of(_queued_tasks)
_QUEUED_TASKS_BEFORE = Query.of(_queued_tasks.where(tasks.c.redispatch_at < sa.bindparam("due_before")))

_sleeping_tasks = (
    sa.select(*_TASK.columns)
    .where(task_is_sleeping)
    .order_by(tasks.c.wake_at, tasks.c.position)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_SLEEPING_TASKS = Query.of(_sleeping_tasks)
_SLEEPING_TASKS_BEFORE = Query.of(_sleeping_tasks.where(tasks.c.wake_at < sa.bindparam("due_before")))

_EVENTS_AFTER = (
    sa.select(*_EVENT.columns)
    .where(events.c.task_id == sa.bindparam("task_id"), events.c.index > sa.bindparam("after"))
    .order_by(events.c.index)
    .limit(sa.bindparam("limit", type_=sa.Integer))
)
_INBOX_BY_TASK = Query.unlocked(
    sa.select(*_INBOX.columns).where(inbox.c.task_id.in_(_ids), inbox.c.consumed.is_(sa.false()))
)
_INBOX_KEYS = sa.select(inbox.c.task_id, inbox.c.idempotency_key).where(
    inbox.c.task_id.in_(_ids), inbox.c.idempotency_key.in_(sa.bindparam(_KEYS, expanding=True))
)
_RUNS_BY_TASK = Query.unlocked(sa.select(*_RUN.columns).where(runs.c.task_id.in_(_ids)))
_JOURNAL_BY_TASK = Query.unlocked(sa.select(*_JOURNAL.columns).where(journal.c.task_id.in_(_ids)))
_outbox_oldest = (
    sa.select(*_OUTBOX.columns).order_by(outbox.c.position).limit(sa.bindparam("limit", type_=sa.Integer))
)
_OUTBOX_OLDEST = Query.of(_outbox_oldest)
_OUTBOX_DUE = _outbox_oldest.where(
    sa.or_(outbox.c.relay_at.is_(None), outbox.c.relay_at <= sa.bindparam("now"))
).with_for_update(skip_locked=True)
_SERVICES = Query.kept(sa.select(*_SERVICE.columns))
_SERVICES_BY_NAME = Query.kept(sa.select(*_SERVICE.columns).where(services.c.service_name.in_(_ids)))
_INSTANCES = Query.of(sa.select(*_INSTANCE.columns), in_order_of=instances.c.instance_id)
_INSTANCES_BY_ID = Query.of(
    sa.select(*_INSTANCE.columns).where(instances.c.instance_id.in_(_ids)),
    in_order_of=instances.c.instance_id,
)
_INSTANCES_BY_SERVICE = Query.of(
    sa.select(*_INSTANCE.columns).where(instances.c.service_name.in_(_ids)),
    in_order_of=instances.c.instance_id,
)

_INSERT_SESSIONS = sa.insert(sessions)
# Inline: nobody asks for the new row's position, which some databases send back at a cost.
_INSERT_TASKS = sa.insert(tasks).inline()
_INSERT_EVENTS = sa.insert(events)
_INSERT_INBOX = sa.insert(inbox)
_INSERT_JOURNAL = sa.insert(journal)
_INSERT_OUTBOX = sa.insert(outbox).inline()


def _update(table: sa.Table, mapper: Mapper[R], *, key: str, fixed: Collection[str]) -> sa.Update:
    changing: dict[str, sa.BindParameter[object]] = {
        name: sa.bindparam(name) for name in mapper.names if name != key and name not in fixed
    }
    return sa.update(table).where(table.c[key] == sa.bindparam(_KEY)).values(changing)


_UPDATE_SESSIONS = _update(sessions, _SESSION, key="session_id", fixed={"created_at"})
_UPDATE_TASKS = _update(
    tasks, _TASK, key="task_id", fixed={"session_id", "service_name", "input", "created_at"}
)

_UPDATE_PROGRESS = _update(tasks, _TASK, key="task_id", fixed={*_TASK.names} - {*PROGRESS})
_UPDATE_OUTBOX = _update(outbox, _OUTBOX, key="message_id", fixed={"topic", "message"})
_CONSUME_INBOX = (
    sa.update(inbox)
    .where(inbox.c.task_id == sa.bindparam(_KEY), inbox.c.seq == sa.bindparam("number"))
    .values(consumed=sa.true())
)
_TRIM_JOURNAL = sa.delete(journal).where(
    journal.c.task_id == sa.bindparam(_KEY), journal.c.seq < sa.bindparam("length")
)

_tasks_of_sessions = sa.select(tasks.c.task_id).where(tasks.c.session_id.in_(_ids))
_DELETE_SESSIONS = (
    sa.delete(events).where(events.c.task_id.in_(_tasks_of_sessions)),
    sa.delete(inbox).where(inbox.c.task_id.in_(_tasks_of_sessions)),
    sa.delete(journal).where(journal.c.task_id.in_(_tasks_of_sessions)),
    sa.delete(runs).where(runs.c.task_id.in_(_tasks_of_sessions)),
    sa.delete(tasks).where(tasks.c.session_id.in_(_ids)),
    sa.delete(sessions).where(sessions.c.session_id.in_(_ids)),
)
_DELETE_RUNS = (
    sa.delete(journal).where(journal.c.task_id.in_(_ids)),
    sa.delete(runs).where(runs.c.task_id.in_(_ids)),
)
_DELETE_OUTBOX = (sa.delete(outbox).where(outbox.c.message_id.in_(_ids)),)
_DELETE_SERVICES = (
    sa.delete(instances).where(instances.c.service_name.in_(_ids)),
    sa.delete(services).where(services.c.service_name.in_(_ids)),
)
_DELETE_INSTANCES = (sa.delete(instances).where(instances.c.instance_id.in_(_ids)),)


def _puts(table: sa.Table) -> dict[str, sa.Insert]:
    """Return "insert, or overwrite the row with that key" for each dialect: the standard has none."""
    puts: dict[str, sa.Insert] = {}
    for dialect in (sqlite, postgresql):
        insert = dialect.insert(table)
        replaced = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        puts[dialect.dialect.name] = insert.on_conflict_do_update(
            index_elements=list(table.primary_key), set_=replaced
        )
    return puts


def _run_puts() -> dict[str, sa.Insert]:
    """Like `_puts`, but what is None keeps the value that is stored, and nothing new is no write."""
    puts: dict[str, sa.Insert] = {}
    for dialect in (sqlite, postgresql):
        insert = dialect.insert(runs)
        new = insert.excluded
        puts[dialect.dialect.name] = insert.on_conflict_do_update(
            index_elements=list(runs.primary_key),
            set_={
                "fingerprint": new.fingerprint,
                "library_version": new.library_version,
                "snapshot": sa.func.coalesce(new.snapshot, runs.c.snapshot),
                "state": sa.func.coalesce(new.state, runs.c.state),
            },
            where=sa.or_(
                new.snapshot.is_not(None),
                new.state.is_not(None),
                new.fingerprint != runs.c.fingerprint,
                new.library_version != runs.c.library_version,
            ),
        )
    return puts


_PUT_RUNS = _run_puts()
_PUT_SERVICES = _puts(services)
_PUT_INSTANCES = _puts(instances)


def _chunks(items: Collection[T], size: int = _IDS_PER_STATEMENT) -> Iterator[list[T]]:
    unique = list(dict.fromkeys(items))
    for start in range(0, len(unique), size):
        yield unique[start : start + size]


class SQLTransaction(StoreTransaction):
    """The store's rows in the transaction that is open on `connection`.

    Args:
        connection: Used synchronously; whoever opened its transaction ends it.
        lock_rows: Whether rows that are read stay locked until then. False for transactions that only read,
            and where transactions that write come one after the other by themselves.
    """

    def __init__(self, connection: Connection, *, lock_rows: bool) -> None:
        self._connection = connection
        self._lock_rows = lock_rows

    # -- sessions

    def load_sessions(self, session_ids: Collection[str]) -> dict[str, SessionRecord]:
        found = map(_SESSION.record, self._rows_by_ids(_SESSIONS_BY_ID, session_ids))
        return {session.session_id: session for session in found}

    def list_sessions(self, *, after: str = "", limit: int = 1000) -> list[SessionRecord]:
        rows = self._rows(_SESSIONS_AFTER, {"after": after, "limit": limit})
        return [_SESSION.record(row) for row in rows]

    def insert_sessions(self, sessions: Sequence[SessionRecord]) -> None:
        self._write(_INSERT_SESSIONS, _SESSION.rows(sessions))

    def update_sessions(self, sessions: Sequence[SessionRecord]) -> None:
        self._write(
            _UPDATE_SESSIONS,
            [
                {
                    _KEY: session.session_id,
                    "policy": session.policy,
                    "state": session.state,
                    "version": session.version,
                }
                for session in sessions
            ],
        )

    def delete_sessions(self, session_ids: Collection[str]) -> None:
        self._delete(_DELETE_SESSIONS, session_ids)

    # -- tasks

    def load_tasks(self, task_ids: Collection[str]) -> dict[str, TaskRecord]:
        found = map(_TASK.record, self._rows_by_ids(_TASKS_BY_ID, task_ids))
        return {task.task_id: task for task in found}

    def session_tasks(self, session_ids: Collection[str], *, open_only: bool = False) -> list[TaskRecord]:
        query = _OPEN_TASKS_OF_SESSIONS if open_only else _TASKS_OF_SESSIONS
        return self._tasks_in_order(query, session_ids)

    def instance_tasks(self, instance_ids: Collection[str]) -> list[TaskRecord]:
        return self._tasks_in_order(_TASKS_OF_INSTANCES, instance_ids)

    def queued_tasks(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        return self._tasks_due(_QUEUED_TASKS, _QUEUED_TASKS_BEFORE, due_before, limit)

    def sleeping_tasks(self, *, due_before: datetime | None = None, limit: int = 1000) -> list[TaskRecord]:
        return self._tasks_due(_SLEEPING_TASKS, _SLEEPING_TASKS_BEFORE, due_before, limit)

    def insert_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        self._write(_INSERT_TASKS, _TASK.rows(tasks))

    def update_tasks(self, tasks: Sequence[TaskRecord]) -> None:
        rows = _TASK.rows(tasks)
        for row in rows:
            row[_KEY] = row.pop("task_id")
            for fixed in ("session_id", "service_name", "input", "created_at"):
                del row[fixed]
        self._write(_UPDATE_TASKS, rows)

    def update_progress(self, tasks: Sequence[TaskRecord]) -> None:
        rows = [{_KEY: task.task_id} | {name: getattr(task, name) for name in PROGRESS} for task in tasks]
        self._write(_UPDATE_PROGRESS, rows)

    # -- event streams and inboxes

    def load_events(self, task_id: str, *, after: int = -1, limit: int = 1000) -> list[EventRecord]:
        found = self._connection.execute(_EVENTS_AFTER, {"task_id": task_id, "after": after, "limit": limit})
        return [_EVENT.record(row) for row in found]

    def insert_events(self, events: Sequence[EventRecord]) -> None:
        self._write(_INSERT_EVENTS, _EVENT.rows(events))

    def load_inbox(self, task_ids: Collection[str]) -> list[InboxRecord]:
        found = map(_INBOX.record, self._rows_by_ids(_INBOX_BY_TASK, task_ids))
        return sorted(found, key=attrgetter("task_id", "seq"))

    def insert_inbox(self, entries: Sequence[InboxRecord]) -> None:
        self._write(_INSERT_INBOX, _INBOX.rows(entries))

    def known_inbox_keys(self, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        known: set[tuple[str, str]] = set()
        for pairs in _chunks(keys, _PAIRS_PER_STATEMENT):
            parameters = {_IDS: {task_id for task_id, _ in pairs}, _KEYS: {key for _, key in pairs}}
            found = self._connection.execute(_INBOX_KEYS, parameters)
            known.update((task_id, key) for task_id, key in found)
        return known & set(keys)

    def consume_inbox(self, entries: Collection[tuple[str, int]]) -> None:
        self._write(_CONSUME_INBOX, [{_KEY: task_id, "number": seq} for task_id, seq in entries])

    # -- runs and their journals

    def load_runs(self, task_ids: Collection[str]) -> dict[str, RunHeadRecord]:
        found = map(_RUN.record, self._rows_by_ids(_RUNS_BY_TASK, task_ids))
        return {run.task_id: run for run in found}

    def put_runs(self, runs: Sequence[RunHeadRecord]) -> None:
        self._write(_PUT_RUNS[self._connection.dialect.name], _RUN.rows(runs))

    def load_journal(self, task_ids: Collection[str]) -> list[JournalRecord]:
        found = map(_JOURNAL.record, self._rows_by_ids(_JOURNAL_BY_TASK, task_ids))
        return sorted(found, key=attrgetter("task_id", "seq"))

    def insert_journal(self, entries: Sequence[JournalRecord]) -> None:
        self._write(_INSERT_JOURNAL, _JOURNAL.rows(entries))

    def trim_journal(self, lengths: Mapping[str, int]) -> None:
        self._write(_TRIM_JOURNAL, [{_KEY: task_id, "length": length} for task_id, length in lengths.items()])

    def delete_runs(self, task_ids: Collection[str]) -> None:
        self._delete(_DELETE_RUNS, task_ids)

    # -- outbox

    def load_outbox(self, *, limit: int = 1000) -> list[OutboxRecord]:
        return [_OUTBOX.record(row) for row in self._rows(_OUTBOX_OLDEST, {"limit": limit})]

    def take_outbox(self, *, now: datetime, until: datetime, limit: int = 1000) -> list[OutboxRecord]:
        found = self._connection.execute(_OUTBOX_DUE, {"now": now, "limit": limit}).all()
        taken = [replace(_OUTBOX.record(row), relay_at=until) for row in found]
        self._write(_UPDATE_OUTBOX, [{_KEY: item.message_id, "relay_at": until} for item in taken])
        return taken

    def insert_outbox(self, messages: Sequence[OutboxRecord]) -> None:
        self._write(_INSERT_OUTBOX, _OUTBOX.rows(messages))

    def delete_outbox(self, message_ids: Collection[str]) -> None:
        self._delete(_DELETE_OUTBOX, message_ids)

    # -- services and instances

    def load_services(self, service_names: Collection[str] | None = None) -> dict[str, ServiceRecord]:
        rows = (
            self._rows(_SERVICES, {})
            if service_names is None
            else self._rows_by_ids(_SERVICES_BY_NAME, service_names)
        )
        return {service.service_name: service for service in map(_SERVICE.record, rows)}

    def put_services(self, services: Sequence[ServiceRecord]) -> None:
        self._write(_PUT_SERVICES[self._connection.dialect.name], _SERVICE.rows(services))

    def delete_services(self, service_names: Collection[str]) -> None:
        self._delete(_DELETE_SERVICES, service_names)

    def load_instances(
        self, *, service_names: Collection[str] | None = None, instance_ids: Collection[str] | None = None
    ) -> list[InstanceRecord]:
        rows: Sequence[Sequence[Any]]
        if instance_ids is not None:
            rows = self._rows_by_ids(_INSTANCES_BY_ID, instance_ids)
        elif service_names is not None:
            rows = self._rows_by_ids(_INSTANCES_BY_SERVICE, service_names)
        else:
            rows = self._rows(_INSTANCES, {})
        found = [_INSTANCE.record(row) for row in rows]
        if instance_ids is not None and service_names is not None:
            names = frozenset(service_names)
            found = [instance for instance in found if instance.service_name in names]
        return sorted(found, key=attrgetter("instance_id"))

    def put_instances(self, instances: Sequence[InstanceRecord]) -> None:
        self._write(_PUT_INSTANCES[self._connection.dialect.name], _INSTANCE.rows(instances))

    def delete_instances(self, instance_ids: Collection[str]) -> None:
        self._delete(_DELETE_INSTANCES, instance_ids)

    # -- the four ways to reach the database

    def _rows(self, query: Query, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        select = query.locking if self._lock_rows else query.plain
        return self._connection.execute(select, dict(parameters)).all()

    def _rows_by_ids(self, query: Query, ids: Collection[str]) -> list[Sequence[Any]]:
        return [row for chunk in _chunks(ids) for row in self._rows(query, {_IDS: chunk})]

    def _write(self, statement: sa.Insert | sa.Update | sa.Delete, rows: list[dict[str, object]]) -> None:
        if rows:
            self._connection.execute(statement, rows)

    def _delete(self, statements: Sequence[sa.Delete], ids: Collection[str]) -> None:
        for chunk in _chunks(ids):
            for statement in statements:
                self._connection.execute(statement, {_IDS: chunk})

    def _tasks_due(
        self, every: Query, early: Query, due_before: datetime | None, limit: int
    ) -> list[TaskRecord]:
        if due_before is None:
            rows = self._rows(every, {"limit": limit})
        else:
            rows = self._rows(early, {"due_before": due_before, "limit": limit})
        return [_TASK.record(row) for row in rows]

    def _tasks_in_order(self, query: Query, ids: Collection[str]) -> list[TaskRecord]:
        rows = sorted(self._rows_by_ids(query, ids), key=itemgetter(-1))
        return [_TASK.record(row[:-1]) for row in rows]
