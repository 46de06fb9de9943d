"""Runs with their journals, parked tasks, and inbox entries that are consumed.

Columns are added in place; the indexes take time in proportion to tasks and inbox.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_OPEN_BEFORE = "status IN ('pending', 'queued', 'running')"
_TASK_COLUMNS = ("has_run", "journal_length", "running_seconds", "wake_at")
_INBOX_COLUMNS = ("idempotency_key", "consumed")


def upgrade() -> None:
    """Add them."""
    op.add_column("tasks", sa.Column("has_run", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column(
        "tasks", sa.Column("journal_length", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column(
        "tasks", sa.Column("running_seconds", sa.Double(), nullable=False, server_default=sa.text("0"))
    )
    op.add_column("tasks", sa.Column("wake_at", sa.BigInteger()))
    op.drop_index("ix_tasks_session_open", table_name="tasks")
    op.drop_index("ix_tasks_session", table_name="tasks")
    op.create_index("ix_tasks_session", "tasks", ["session_id", "finished_at"])
    _create_partial_index(
        "ix_tasks_sleeping", "tasks", ["wake_at", "position"], "status = 'waiting' AND wake_at IS NOT NULL"
    )
    op.add_column("inbox", sa.Column("idempotency_key", sa.Text()))
    op.add_column("inbox", sa.Column("consumed", sa.Boolean(), nullable=False, server_default=sa.false()))
    _create_partial_index(
        "ix_inbox_key",
        "inbox",
        ["task_id", "idempotency_key"],
        "idempotency_key IS NOT NULL",
        unique=True,
    )
    _create_runs()


def downgrade() -> None:
    """Delete them. A parked task, which the older release does not know, starts again from its beginning.

    Session states that newer services have written stay as they are; an older release cannot read them.
    """
    for table in ("journal", "runs"):
        op.drop_table(table)
    op.drop_index("ix_inbox_key", table_name="inbox")
    op.drop_index("ix_tasks_sleeping", table_name="tasks")
    op.execute("UPDATE tasks SET status = 'queued', attempt = attempt + 1 WHERE status = 'waiting'")
    op.drop_index("ix_tasks_session", table_name="tasks")
    op.create_index("ix_tasks_session", "tasks", ["session_id", "position"])
    _create_partial_index("ix_tasks_session_open", "tasks", ["session_id", "position"], _OPEN_BEFORE)
    for table, columns in (("tasks", _TASK_COLUMNS), ("inbox", _INBOX_COLUMNS)):
        for column in columns:
            op.drop_column(table, column)


def _create_partial_index(
    name: str, table: str, columns: list[str], condition: str, *, unique: bool = False
) -> None:
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=sa.text(condition),
        postgresql_where=sa.text(condition),
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("task_id", sa.Text(), nullable=False),
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
