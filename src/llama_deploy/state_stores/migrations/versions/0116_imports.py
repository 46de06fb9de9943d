"""Which tasks were imported."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0116"
down_revision = "0115"


def upgrade() -> None:
    """Add a column to tasks."""
    op.add_column("tasks", sa.Column("imported_at", sa.BigInteger()))
