"""The tables of a state store in SQL, the same on every database.

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

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import sqlalchemy as sa

from llama_deploy.types import SessionPolicy, TaskStatus

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

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("policy", EnumText(SessionPolicy), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("created_at", UtcMicroseconds, nullable=False),
    sa.Column("updated_at", UtcMicroseconds, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    _position(),
    sa.Column("task_id", sa.Text, nullable=False, unique=True),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("service_name", sa.Text, nullable=False),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("created_at", UtcMicroseconds, nullable=False),
    sa.Column("trace", sa.Text),
    sa.Column("parent_task_id", sa.Text),
    sa.Column("root_task_id", sa.Text),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("not_before", UtcMicroseconds),
    sa.Column("deadline", UtcMicroseconds),
    sa.Column("status", EnumText(TaskStatus), nullable=False),
    sa.Column("status_changed_at", UtcMicroseconds, nullable=False),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("losses", sa.Integer, nullable=False),
    sa.Column("instance_id", sa.Text),
    sa.Column("token", sa.Text),
    sa.Column("claimed_at", UtcMicroseconds),
    sa.Column("redispatch_at", UtcMicroseconds),
    sa.Column("dispatches", sa.Integer, nullable=False),
    sa.Column("stream_length", sa.BigInteger, nullable=False),
    sa.Column("attempt_events", sa.BigInteger, nullable=False),
    sa.Column("inbox_length", sa.BigInteger, nullable=False),
    sa.Column("has_run", sa.Boolean, nullable=False),
    sa.Column("journal_length", sa.BigInteger, nullable=False),
    sa.Column("running_seconds", sa.Double, nullable=False),
    sa.Column("wake_at", UtcMicroseconds),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("finished_at", UtcMicroseconds),
    sa.Column("result", sa.Text),
)

task_is_open = tasks.c.finished_at.is_(None)
"""The condition under which a task has not ended."""
task_is_pending = tasks.c.status == _literal(TaskStatus.PENDING)
task_is_queued = tasks.c.status == _literal(TaskStatus.QUEUED)
task_is_running = tasks.c.status == _literal(TaskStatus.RUNNING)
task_is_waiting = tasks.c.status == _literal(TaskStatus.WAITING)


def _partial_index(
    name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


# One index for the tasks of a session and for the open ones among them: every index costs a page a commit.
sa.Index("ix_tasks_session", tasks.c.session_id, tasks.c.finished_at)
_partial_index("ix_tasks_pending", tasks.c.position, where=task_is_pending)
_partial_index("ix_tasks_queued", tasks.c.redispatch_at, tasks.c.position, where=task_is_queued)
_partial_index("ix_tasks_instance_running", tasks.c.instance_id, tasks.c.position, where=task_is_running)
_partial_index("ix_tasks_waiting", tasks.c.wake_at, tasks.c.position, where=task_is_waiting)
# Only ended tasks: with all of them, each status of a task would cost pages, four in place of one.
_partial_index(
    "ix_tasks_ended", tasks.c.status, tasks.c.status_changed_at, where=tasks.c.finished_at.is_not(None)
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("terminal", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)

inbox = sa.Table(
    "inbox",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("consumed", sa.Boolean, nullable=False, server_default=sa.false()),
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
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("library_version", sa.Text, nullable=False),
    sa.Column("snapshot", sa.Text),
    sa.Column("state", sa.Text),
)

journal = sa.Table(
    "journal",
    metadata,
    sa.Column("task_id", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("entry", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

outbox = sa.Table(
    "outbox",
    metadata,
    _position(),
    sa.Column("message_id", sa.Text, nullable=False, unique=True),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("relay_at", UtcMicroseconds),
)

services = sa.Table(
    "services",
    metadata,
    sa.Column("service_name", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("definition", sa.Text, nullable=False),
)

instances = sa.Table(
    "instances",
    metadata,
    sa.Column("instance_id", sa.Text, primary_key=True),
    sa.Column("service_name", sa.Text, nullable=False),
    sa.Column("host", sa.Text),
    sa.Column("port", sa.Integer),
    sa.Column("last_heartbeat", UtcMicroseconds, nullable=False),
    sa.Column("lease_expires_at", UtcMicroseconds, nullable=False),
)

sa.Index("ix_instances_service", instances.c.service_name)
