"""The versions of workflows, and what runs need of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0105"
down_revision = "0104"


def upgrade() -> None:
    """Add a table of versions, and columns that name a version or say what a run needs."""
    op.create_table(
        "versions",
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", "version", name="pk_versions"),
    )
    op.add_column("instances", sa.Column("version", sa.Text()))
    op.add_column("runs", sa.Column("needs", sa.Text()))
    op.add_column("tasks", sa.Column("version", sa.Text()))
    op.add_column("tasks", sa.Column("pinned_to", sa.Text()))
