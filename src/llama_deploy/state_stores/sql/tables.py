"""The tables of a state store in SQL, the same on every database.

A table has the fields of its record as columns. The migrations spell them out, and a test compares the two.

Points in time are stored as whole microseconds since 1970-01-01T00:00Z: exact, compared as integers, and the
same on databases with and without a type for aware times. The partial indexes of tasks cover each status, and
only tasks that change to it pay for its index. The condition of a partial index is written into a query as a
literal, because a bound parameter would hide from the planner that the index answers it.

There are no foreign keys: the control plane writes children and parents in one transaction, and checking
them again would cost a look-up per row.
"""

# SQLAlchemy says what the methods of a type do and take.
# ruff: noqa: ARG002, D102

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_type_hints

import sqlalchemy as sa

from llama_deploy.state_stores.records import (
    SUSPECT_DEATHS,
    EventRecord,
    InboxRecord,
    InstanceRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
    ServiceRecord,
    SessionRecord,
    TaskRecord,
    VersionRecord,
)
from llama_deploy.types import Durability, SessionPolicy, TaskStatus

E = TypeVar("E", bound=StrEnum)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UtcMicroseconds(sa.types.TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970 in UTC. A naive one is refused with `TypeError`."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class EnumText(sa.types.TypeDecorator[E]):
    """A member of a `StrEnum` as its value, so that a new member needs no change of the schema."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, enum: type[E]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: E | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> E | None:
        return None if value is None else self.enum(value)


def _position() -> sa.Column[int]:
    """Return a key that grows in the order of insertion."""
    # Only a column declared as INTEGER is SQLite's own row number, which costs nothing.
    return sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)


def _literal(status: TaskStatus) -> sa.ColumnClause[str]:
    return sa.literal_column(f"'{status.value}'")


metadata = sa.MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}
)

_TYPES: Final[dict[object, sa.types.TypeEngine[Any]]] = {
    bool: sa.Boolean(),
    datetime: UtcMicroseconds(),
    float: sa.Double(),
    int: sa.BigInteger(),
    str: sa.Text(),
    Durability: EnumText(Durability),
    SessionPolicy: EnumText(SessionPolicy),
    TaskStatus: EnumText(TaskStatus),
}


def _table(
    name: str,
    record: type[tuple[Any, ...]],
    *columns: sa.Column[Any],
    key: Collection[str] = (),
    unique: str | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> sa.Table:
    """Return the table of a record, with a column for each field.

    Args:
        name: The name of the table.
        record: The type of its records. A field that may be None becomes a column that may be NULL.
        *columns: Further columns, which are not in the record.
        key: The fields that are the primary key.
        unique: The field that is unique besides.
        defaults: What the database puts into fields that older releases do not know, if it is not NULL.
        **options: For certain databases.
    """
    fields = [
        sa.Column(
            field,
            _TYPES[next(iter(get_args(kind)), kind)],
            primary_key=field in key,
            unique=field == unique,
            nullable=type(None) in get_args(kind),
            server_default=defaults.get(field),
        )
        for field, kind in get_type_hints(record).items()
    ]
    return sa.Table(name, metadata, *columns, *fields, **options)


sessions = _table("sessions", SessionRecord, key=["session_id"])

tasks = _table("tasks", TaskRecord, _position(), unique="task_id", defaults={"deaths": "0"})

task_is_open = tasks.c.finished_at.is_(None)
"""The condition under which a task has not ended."""
task_is_pending = tasks.c.status == _literal(TaskStatus.PENDING)
task_is_queued = tasks.c.status == _literal(TaskStatus.QUEUED)
task_is_suspect = sa.and_(task_is_queued, tasks.c.deaths >= sa.literal_column(str(SUSPECT_DEATHS)))
task_is_published_suspect = sa.and_(task_is_suspect, tasks.c.dispatches > sa.literal_column("0"))
task_is_running = tasks.c.status == _literal(TaskStatus.RUNNING)
task_is_unrouted = sa.and_(task_is_pending, tasks.c.redispatch_at.is_not(None))
task_is_waiting = tasks.c.status == _literal(TaskStatus.WAITING)
task_is_choosy = sa.or_(tasks.c.has_run, tasks.c.pinned_to.is_not(None))
"""The condition under which not every version of a service can run a task."""
task_target = sa.func.coalesce(tasks.c.routed_to, tasks.c.service_name)
"""`TaskRecord.target`."""


def _partial_index(
    name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


# One index for the tasks of a session and for the open ones among them: every index costs a page a commit.
sa.Index("ix_tasks_session", tasks.c.session_id, tasks.c.finished_at)
_partial_index("ix_tasks_pending", tasks.c.position, where=task_is_pending)
_partial_index("ix_tasks_unrouted", tasks.c.redispatch_at, tasks.c.position, where=task_is_unrouted)
_partial_index("ix_tasks_queued", tasks.c.redispatch_at, tasks.c.position, where=task_is_queued)
_partial_index(
    "ix_tasks_suspects", tasks.c.service_name, tasks.c.routed_to, tasks.c.dispatches, where=task_is_suspect
)
_partial_index("ix_tasks_instance_running", tasks.c.instance_id, tasks.c.position, where=task_is_running)
_partial_index("ix_tasks_waiting", tasks.c.wake_at, tasks.c.position, where=task_is_waiting)
# Only ended tasks: with all of them, each status of a task would cost pages, four in place of one.
_partial_index(
    "ix_tasks_ended", tasks.c.status, tasks.c.status_changed_at, where=tasks.c.finished_at.is_not(None)
)

events = _table("events", EventRecord, key=["task_id", "position"], sqlite_with_rowid=False)

inbox = _table(
    "inbox",
    InboxRecord,
    sa.Column("consumed", sa.Boolean, nullable=False, server_default=sa.false()),
    key=["task_id", "seq"],
    sqlite_with_rowid=False,
)

_partial_index(
    "ix_inbox_key",
    inbox.c.task_id,
    inbox.c.idempotency_key,
    where=inbox.c.idempotency_key.is_not(None),
    unique=True,
)

# Ordinary rows: snapshots and states are too large for the inner pages of a tree.
runs = _table("runs", RunHeadRecord, key=["task_id"])

journal = _table("journal", JournalRecord, key=["task_id", "seq"], sqlite_with_rowid=False)

outbox = _table("outbox", OutboxRecord, _position(), unique="message_id")

services = _table("services", ServiceRecord, key=["service_name"])

versions = _table("versions", VersionRecord, key=["service_name", "version"])

instances = _table("instances", InstanceRecord, key=["instance_id"], defaults={"alone": sa.false()})

sa.Index("ix_instances_service", instances.c.service_name)
