"""What becomes of a task's run when its instance dies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0101"
down_revision = "0100"


def upgrade() -> None:
    """Add two columns to tasks."""
    op.add_column("tasks", sa.Column("durability", sa.Text()))
    op.add_column("tasks", sa.Column("volatile_reason", sa.Text()))
