"""What is left of removed tasks, and how far retention has come."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0113"
down_revision = "0112"

_HAS_REST = sa.text("has_rest")


def upgrade() -> None:
    """Add two tables, with two indexes on the first one."""
    op.create_table(
        "removed_tasks",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=False),
        sa.Column("has_rest", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name="pk_removed_tasks"),
    )
    op.create_index("ix_removed_tasks_at", "removed_tasks", ["removed_at"])
    op.create_index(
        "ix_removed_tasks_rest",
        "removed_tasks",
        ["task_id"],
        sqlite_where=_HAS_REST,
        postgresql_where=_HAS_REST,
    )
    op.create_table(
        "retention_progress",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cursors", sa.Text(), nullable=False),
        sa.Column("begun_at", sa.BigInteger(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_retention_progress"),
    )
