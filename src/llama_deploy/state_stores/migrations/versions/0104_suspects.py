"""Who was present at the deaths of processes, and which instances share a process."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0104"
down_revision = "0103"

_SUSPECT = sa.text("status = 'queued' AND deaths >= 2")


def upgrade() -> None:
    """Add a column to tasks with an index that only suspects are in, and three columns to instances."""
    op.add_column("tasks", sa.Column("deaths", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(
        "ix_tasks_suspects",
        "tasks",
        ["service_name", "routed_to", "dispatches"],
        sqlite_where=_SUSPECT,
        postgresql_where=_SUSPECT,
    )
    op.add_column("instances", sa.Column("process_id", sa.Text()))
    op.add_column("instances", sa.Column("waiting", sa.Text()))
    op.add_column("instances", sa.Column("alone", sa.Boolean(), nullable=False, server_default=sa.false()))
