"""The first schema."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision = "0100"
down_revision = None

_POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables."""
    _create_sessions()
    _create_tasks()
    _create_streams()
    _create_runs()
    _create_outbox()
    _create_services()


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("position", _POSITION, nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("trace", sa.Text()),
        sa.Column("parent_task_id", sa.Text()),
        sa.Column("root_task_id", sa.Text()),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("not_before", sa.BigInteger()),
        sa.Column("deadline", sa.BigInteger()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_changed_at", sa.BigInteger(), nullable=False),
        sa.Column("max_attempts", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("losses", sa.BigInteger(), nullable=False),
        sa.Column("instance_id", sa.Text()),
        sa.Column("token", sa.Text()),
        sa.Column("claimed_at", sa.BigInteger()),
        sa.Column("redispatch_at", sa.BigInteger()),
        sa.Column("dispatches", sa.BigInteger(), nullable=False),
        sa.Column("stream_length", sa.BigInteger(), nullable=False),
        sa.Column("attempt_events", sa.BigInteger(), nullable=False),
        sa.Column("inbox_length", sa.BigInteger(), nullable=False),
        sa.Column("has_run", sa.Boolean(), nullable=False),
        sa.Column("journal_length", sa.BigInteger(), nullable=False),
        sa.Column("running_seconds", sa.Double(), nullable=False),
        sa.Column("wake_at", sa.BigInteger()),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("result", sa.Text()),
        sa.PrimaryKeyConstraint("position", name="pk_tasks"),
        sa.UniqueConstraint("task_id", name="uq_tasks_task_id"),
    )
    _create_partial_index(
        "ix_tasks_session", "tasks", ["session_id", "finished_at", "position"], "finished_at IS NULL"
    )
    _create_partial_index("ix_tasks_queued", "tasks", ["redispatch_at", "position"], "status = 'queued'")
    _create_partial_index(
        "ix_tasks_instance_running", "tasks", ["instance_id", "position"], "status = 'running'"
    )
    _create_partial_index("ix_tasks_pending", "tasks", ["position"], "status = 'pending'")
    _create_partial_index("ix_tasks_waiting", "tasks", ["wake_at", "position"], "status = 'waiting'")
    _create_partial_index(
        "ix_tasks_ended", "tasks", ["status", "status_changed_at"], "finished_at IS NOT NULL"
    )


def _create_partial_index(
    name: str, table: str, columns: Sequence[str], condition: str, *, unique: bool = False
) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=sa.text(condition),
        postgresql_where=sa.text(condition),
    )


def _create_streams() -> None:
    op.create_table(
        "events",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("terminal", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "position", name="pk_events"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inbox",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("consumed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("task_id", "seq", name="pk_inbox"),
        sqlite_with_rowid=False,
    )
    _create_partial_index(
        "ix_inbox_key", "inbox", ["task_id", "idempotency_key"], "idempotency_key IS NOT NULL", unique=True
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("format", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("library_version", sa.Text(), nullable=False),
        sa.Column("snapshot", sa.Text()),
        sa.Column("state", sa.Text()),
        sa.PrimaryKeyConstraint("task_id", name="pk_runs"),
    )
    op.create_table(
        "journal",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "seq", name="pk_journal"),
        sqlite_with_rowid=False,
    )


def _create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("position", _POSITION, nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("relay_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("position", name="pk_outbox"),
        sa.UniqueConstraint("message_id", name="uq_outbox_message_id"),
    )


def _create_services() -> None:
    op.create_table(
        "services",
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", name="pk_services"),
    )
    op.create_table(
        "instances",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text()),
        sa.Column("port", sa.BigInteger()),
        sa.Column("last_heartbeat", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instances"),
    )
    op.create_index("ix_instances_service", "instances", ["service_name"])
