"""From where a task is retried, from which task its run was copied, and the retries of a task."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0115"
down_revision = "0114"


def upgrade() -> None:
    """Add a column to tasks, one to runs, and an index of the tasks that are retries."""
    op.add_column("tasks", sa.Column("retry_from", sa.Text()))
    op.add_column("runs", sa.Column("origin", sa.Text()))
    is_retry = sa.text("retry_of IS NOT NULL")
    op.create_index(
        "ix_tasks_retries", "tasks", ["retry_of"], sqlite_where=is_retry, postgresql_where=is_retry
    )
