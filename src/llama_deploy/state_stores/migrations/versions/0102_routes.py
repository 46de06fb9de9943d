"""Tasks that an orchestrator sends from service to service."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0102"
down_revision = "0101"

_UNROUTED = sa.text("status = 'pending' AND redispatch_at IS NOT NULL")


def upgrade() -> None:
    """Add two columns to tasks, and an index that only tasks with a route are in."""
    op.add_column("tasks", sa.Column("routed_to", sa.Text()))
    op.add_column("tasks", sa.Column("routing", sa.Text()))
    op.create_index(
        "ix_tasks_unrouted",
        "tasks",
        ["redispatch_at", "position"],
        sqlite_where=_UNROUTED,
        postgresql_where=_UNROUTED,
    )
