"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_POSITION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables."""
    _create_sessions_and_tasks()
    _create_streams()
    _create_services()


def downgrade() -> None:
    """Delete all tables."""
    for table in ("instances", "services", "outbox", "inbox", "events", "tasks", "sessions"):
        op.drop_table(table)


def _create_sessions_and_tasks() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )
    op.create_table(
        "tasks",
        sa.Column("position", _POSITION, nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Text()),
        sa.Column("token", sa.Text()),
        sa.Column("claimed_at", sa.BigInteger()),
        sa.Column("redispatch_at", sa.BigInteger()),
        sa.Column("dispatches", sa.Integer(), nullable=False),
        sa.Column("stream_length", sa.BigInteger(), nullable=False),
        sa.Column("attempt_events", sa.BigInteger(), nullable=False),
        sa.Column("inbox_length", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("finished_at", sa.BigInteger()),
        sa.Column("result", sa.Text()),
        sa.PrimaryKeyConstraint("position", name="pk_tasks"),
        sa.UniqueConstraint("task_id", name="uq_tasks_task_id"),
    )
    op.create_index("ix_tasks_session", "tasks", ["session_id", "position"])
    _create_partial_index("ix_tasks_session_open", "session_id", "status IN ('pending', 'queued', 'running')")
    _create_partial_index("ix_tasks_queued", "redispatch_at", "status = 'queued'")
    _create_partial_index("ix_tasks_instance_running", "instance_id", "status = 'running'")


def _create_partial_index(name: str, column: str, condition: str) -> None:
    op.create_index(
        name,
        "tasks",
        [column, "position"],
        sqlite_where=sa.text(condition),
        postgresql_where=sa.text(condition),
    )


def _create_streams() -> None:
    op.create_table(
        "events",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("index", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("terminal", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "index", name="pk_events"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inbox",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "seq", name="pk_inbox"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outbox",
        sa.Column("position", _POSITION, nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_outbox"),
        sa.UniqueConstraint("message_id", name="uq_outbox_message_id"),
    )


def _create_services() -> None:
    op.create_table(
        "services",
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", name="pk_services"),
    )
    op.create_table(
        "instances",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text()),
        sa.Column("port", sa.Integer()),
        sa.Column("last_heartbeat", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instances"),
    )
    op.create_index("ix_instances_service", "instances", ["service_name"])
