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

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_type_hints

import sqlalchemy as sa

from llama_deploy.state_stores.api_key_repository import ApiKeyRecord
from llama_deploy.state_stores.question_records import CallbackRecord, QuestionRecord
from llama_deploy.state_stores.records import (
    SUSPECT_DEATHS,
    EventPackRecord,
    EventRecord,
    InboxRecord,
    InstanceRecord,
    JournalRecord,
    OutboxRecord,
    RunHeadRecord,
    RunPastRecord,
    SavedStateRecord,
    ServiceRecord,
    SessionRecord,
    SessionTagRecord,
    StepsRecord,
    TaskRecord,
    VersionRecord,
)
from llama_deploy.state_stores.retention_rows import RemovedTask, RetentionProgress
from llama_deploy.types import Durability, SessionPolicy, TaskStatus
from llama_deploy.types.epoch import EPOCH, MICROSECOND, to_microseconds
from llama_deploy.types.questions import QuestionState

E = TypeVar("E", bound=StrEnum)


class UtcMicroseconds(sa.types.TypeDecorator[datetime]):
    """An aware datetime as microseconds since 1970 in UTC. A naive one is refused with `TypeError`."""

    impl = sa.BigInteger
    cache_ok = True

    # The processors themselves: SQLAlchemy would call `process_bind_param` through another function.
    def bind_processor(self, dialect: sa.Dialect) -> Callable[[datetime | None], int | None]:
        return _microseconds

    def result_processor(
        self, dialect: sa.Dialect, coltype: object
    ) -> Callable[[int | None], datetime | None]:
        return _point_in_time

    def process_literal_param(self, value: datetime | None, dialect: sa.Dialect) -> str:
        return "NULL" if value is None else str(to_microseconds(value))


# Without `to_microseconds` and `from_microseconds`: rows have so many times that two calls would matter.
def _microseconds(value: datetime | None) -> int | None:
    return None if value is None else (value - EPOCH) // MICROSECOND


def _point_in_time(value: int | None) -> datetime | None:
    return None if value is None else EPOCH + timedelta(microseconds=value)


class EnumText(sa.types.TypeDecorator[E]):
    """A member of a `StrEnum` as its value, so that a new member needs no change of the schema."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, enum: type[E]) -> None:
        super().__init__()
        self.enum = enum
        self._members = _Known(enum, {None: None} | {each.value: each for each in enum})
        self._values = {None: None} | {each: each.value for each in enum}

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[E | None], str | None]:
        return self._values.__getitem__

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Callable[[str | None], E | None]:
        return self._members.__getitem__


class _Known(dict[str | None, E | None]):
    """The members of an enum by their values."""

    def __init__(self, enum: type[E], members: dict[str | None, E | None]) -> None:
        super().__init__(members)
        self._enum = enum

    def __missing__(self, value: str) -> E:
        return self._enum(value)  # says that it is not a valid one


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
    bytes: sa.LargeBinary(),
    datetime: UtcMicroseconds(),
    float: sa.Double(),
    int: sa.BigInteger(),
    str: sa.Text(),
    Durability: EnumText(Durability),
    QuestionState: EnumText(QuestionState),
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


sessions = _table("sessions", SessionRecord, key=["session_id"], defaults={"tags": "[]"})

_DEFAULT_TENANT: Final[sa.ColumnClause[str]] = sa.literal_column("''")
session_is_of_tenant = sessions.c.tenant != _DEFAULT_TENANT
"""The condition under which a session belongs to another tenant than the default one."""

session_tags = _table("session_tags", SessionTagRecord, key=["tag", "session_id"], sqlite_with_rowid=False)

sa.Index("ix_session_tags_session", session_tags.c.session_id)

session_states = _table("session_states", SavedStateRecord, key=["session_id", "version"])

tasks = _table("tasks", TaskRecord, _position(), unique="task_id", defaults={"deaths": "0"})

task_is_open = tasks.c.finished_at.is_(None)
"""The condition under which a task has not ended."""
task_is_ended = tasks.c.finished_at.is_not(None)
task_is_pending = tasks.c.status == _literal(TaskStatus.PENDING)
task_is_queued = tasks.c.status == _literal(TaskStatus.QUEUED)
task_is_suspect = sa.and_(task_is_queued, tasks.c.deaths >= sa.literal_column(str(SUSPECT_DEATHS)))
task_is_published_suspect = sa.and_(task_is_suspect, tasks.c.dispatches > sa.literal_column("0"))
task_is_running = tasks.c.status == _literal(TaskStatus.RUNNING)
task_is_unrouted = sa.and_(task_is_pending, tasks.c.redispatch_at.is_not(None))
task_is_waiting = tasks.c.status == _literal(TaskStatus.WAITING)
task_shown_status = sa.case(
    (sa.and_(task_is_running, tasks.c.waiting_since.is_not(None)), _literal(TaskStatus.WAITING)),
    else_=tasks.c.status,
)
"""`TaskRecord.shown_status`."""
task_needs_fitting_version = sa.or_(tasks.c.has_run, tasks.c.pinned_to.is_not(None))
"""The condition under which not every version of a service can run a task."""
task_is_of_tenant = tasks.c.tenant != _DEFAULT_TENANT
"""The condition under which a task belongs to another tenant than the default one."""
task_is_of_subject = tasks.c.subject.is_not(None)
task_target = sa.func.coalesce(tasks.c.routed_to, tasks.c.service_name)
"""`TaskRecord.target`."""


def _partial_index(
    name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool], unique: bool = False
) -> None:
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_partial_index("ix_sessions_tenant", sessions.c.tenant, sessions.c.session_id, where=session_is_of_tenant)
_partial_index(
    "ix_sessions_subject",
    sessions.c.tenant,
    sessions.c.subject,
    sessions.c.session_id,
    where=sessions.c.subject.is_not(None),
)

# Only open tasks: all tasks of a session are in the index of its list. It names a column that is always NULL,
# because SQLite prefers the index that answers more conditions.
_partial_index(
    "ix_tasks_session", tasks.c.session_id, tasks.c.finished_at, tasks.c.position, where=task_is_open
)
_partial_index("ix_tasks_pending", tasks.c.position, where=task_is_pending)
_partial_index("ix_tasks_unrouted", tasks.c.redispatch_at, tasks.c.position, where=task_is_unrouted)
_partial_index("ix_tasks_queued", tasks.c.redispatch_at, tasks.c.position, where=task_is_queued)
_partial_index(
    "ix_tasks_suspects", tasks.c.service_name, tasks.c.routed_to, tasks.c.dispatches, where=task_is_suspect
)
_partial_index("ix_tasks_instance_running", tasks.c.instance_id, tasks.c.position, where=task_is_running)
_partial_index("ix_tasks_waiting", tasks.c.wake_at, tasks.c.position, where=task_is_waiting)
# Only ended tasks: with all of them, each status of a task would cost pages, four in place of one.
_partial_index("ix_tasks_ended", tasks.c.status, tasks.c.status_changed_at, where=task_is_ended)

# What lists of tasks read, newest or oldest first. The indexes of ended tasks are written once per task.
sa.Index("ix_tasks_list_session", tasks.c.session_id, tasks.c.created_at, tasks.c.position)
# With what lists check and counts count: the rows of open tasks are scattered, and reading them takes time.
_partial_index(
    "ix_tasks_list_open",
    tasks.c.created_at,
    tasks.c.position,
    tasks.c.service_name,
    tasks.c.status,
    tasks.c.waiting_since,
    where=task_is_open,
)
_partial_index(
    "ix_tasks_list_status", tasks.c.status, tasks.c.created_at, tasks.c.position, where=task_is_ended
)
_partial_index(
    "ix_tasks_list_service",
    tasks.c.service_name,
    tasks.c.status,
    tasks.c.created_at,
    tasks.c.position,
    where=task_is_ended,
)
_partial_index(
    "ix_tasks_list_parent",
    tasks.c.parent_task_id,
    tasks.c.created_at,
    tasks.c.position,
    where=tasks.c.parent_task_id.is_not(None),
)

# Without tenants and subjects, nothing is in these.
_partial_index(
    "ix_tasks_list_tenant", tasks.c.tenant, tasks.c.created_at, tasks.c.position, where=task_is_of_tenant
)
_partial_index(
    "ix_tasks_list_subject",
    tasks.c.tenant,
    tasks.c.subject,
    tasks.c.created_at,
    tasks.c.position,
    where=task_is_of_subject,
)
_partial_index("ix_tasks_open_tenant", tasks.c.tenant, where=sa.and_(task_is_open, task_is_of_tenant))
_partial_index(
    "ix_tasks_open_subject",
    tasks.c.tenant,
    tasks.c.subject,
    where=sa.and_(task_is_open, task_is_of_subject),
)

_partial_index("ix_tasks_retries", tasks.c.retry_of, where=tasks.c.retry_of.is_not(None))

# Elsewhere the unique index has the order of characters. PostgreSQL has one of its own for a prefix.
sa.Index("ix_tasks_list_id", tasks.c.task_id, postgresql_ops={"task_id": "text_pattern_ops"}).ddl_if(
    dialect="postgresql"
)

# The next three follow from `tasks`. Triggers write them, which the migration creates. So they are right
# whatever changes a task, also a release that does not know them.
task_tags = sa.Table(
    "task_tags",
    metadata,
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("created_at", UtcMicroseconds, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("service_name", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)
"""The tags of tasks, each with the key by which tasks are listed, and what lists check besides."""

task_counts = sa.Table(
    "task_counts",
    metadata,
    sa.Column("service_name", sa.Text, primary_key=True),
    sa.Column("status", EnumText(TaskStatus), primary_key=True),
    sa.Column("part", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_count", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""How many ended tasks each service has, by status. Parts are added up: several connections to PostgreSQL do
not wait for each other to change one row."""

owner_counts = sa.Table(
    "owner_counts",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("service_name", sa.Text, primary_key=True),
    sa.Column("status", EnumText(TaskStatus), primary_key=True),
    sa.Column("part", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_count", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""As `task_counts`, of the tenants but the default one (with an empty subject) and of each subject."""

task_steps = _table("task_steps", StepsRecord, key=["task_id", "attempt", "first"], sqlite_with_rowid=False)

events = _table("events", EventRecord, key=["task_id", "position"], sqlite_with_rowid=False)

# Ordinary rows: packs are too large for the inner pages of a tree.
event_packs = _table("event_packs", EventPackRecord, key=["task_id", "position"])

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

questions = _table("questions", QuestionRecord, key=["question_id"], defaults={"tenant": ""})

question_is_open = questions.c.state == sa.literal_column(f"'{QuestionState.OPEN.value}'")
"""The condition under which a question can be answered."""

# Only open questions are listed, so closing one takes it out of the lists.
sa.Index(
    "ix_questions_task",
    questions.c.task_id,
    questions.c.state,
    questions.c.since,
    questions.c.question_id,
)
_partial_index("ix_questions_open", questions.c.since, questions.c.question_id, where=question_is_open)
_partial_index(
    "ix_questions_service",
    questions.c.service_name,
    questions.c.since,
    questions.c.question_id,
    where=question_is_open,
)
_partial_index(
    "ix_questions_assignee",
    questions.c.assignee,
    questions.c.since,
    questions.c.question_id,
    where=question_is_open,
)
_partial_index(
    "ix_questions_deadline",
    questions.c.deadline,
    questions.c.question_id,
    where=sa.and_(question_is_open, questions.c.deadline.is_not(None)),
)

question_is_of_tenant = questions.c.tenant != _DEFAULT_TENANT
_partial_index(
    "ix_questions_tenant",
    questions.c.tenant,
    questions.c.since,
    questions.c.question_id,
    where=sa.and_(question_is_open, question_is_of_tenant),
)
_partial_index(
    "ix_questions_subject",
    questions.c.tenant,
    questions.c.subject,
    questions.c.since,
    questions.c.question_id,
    where=sa.and_(question_is_open, questions.c.subject.is_not(None)),
)

question_tags = sa.Table(
    "question_tags",
    metadata,
    sa.Column("tag", sa.Text, primary_key=True),
    sa.Column("since", UtcMicroseconds, primary_key=True),
    sa.Column("question_id", sa.Text, primary_key=True),
    sqlite_with_rowid=False,
)
"""The tags of open questions, each with the key by which they are listed."""
sa.Index("ix_question_tags_question", question_tags.c.question_id)

callbacks = _table("callbacks", CallbackRecord, key=["token_hash"], sqlite_with_rowid=False)
sa.Index("ix_callbacks_task", callbacks.c.task_id)

api_keys = _table("api_keys", ApiKeyRecord, key=["key_id"], defaults={"tenant": ""}, sqlite_with_rowid=False)
sa.Index("ix_api_keys_created", api_keys.c.created_at, api_keys.c.key_id)
sa.Index("ix_api_keys_tenant", api_keys.c.tenant, api_keys.c.created_at, api_keys.c.key_id)

# Ordinary rows: snapshots and states are too large for the inner pages of a tree.
runs = _table("runs", RunHeadRecord, key=["task_id"])

journal = _table("journal", JournalRecord, key=["task_id", "seq"], sqlite_with_rowid=False)

# Ordinary rows, too.
run_past = _table("run_past", RunPastRecord, key=["task_id", "seq", "snapshots"])

removed_tasks = _table("removed_tasks", RemovedTask, key=["task_id"])

sa.Index("ix_removed_tasks_at", removed_tasks.c.removed_at)
# As a text, because a column of the type Boolean is compared with 1 where there is no such type.
removal_has_rest: Final[sa.ColumnClause[bool]] = sa.literal_column("has_rest")
_partial_index("ix_removed_tasks_rest", removed_tasks.c.task_id, where=removal_has_rest)

retention_progress = _table("retention_progress", RetentionProgress, key=["name"])

outbox = _table("outbox", OutboxRecord, _position(), unique="message_id")

services = _table("services", ServiceRecord, key=["service_name"])

versions = _table("versions", VersionRecord, key=["service_name", "version"])

instances = _table("instances", InstanceRecord, key=["instance_id"], defaults={"alone": sa.false()})

sa.Index("ix_instances_service", instances.c.service_name)
