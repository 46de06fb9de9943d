"""What the writes of a run's journal have replaced, and how many snapshots it has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0117"
down_revision = "0116"


def upgrade() -> None:
    """Add a column to runs, and the table of what was replaced."""
    op.add_column("runs", sa.Column("snapshots", sa.BigInteger()))
    op.create_table(
        "run_past",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("snapshots", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("state_change", sa.Text()),
        sa.Column("replaced", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("task_id", "seq", "snapshots", name="pk_run_past"),
    )
