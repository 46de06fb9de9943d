"""The load of instances, and what blocks them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0103"
down_revision = "0102"


def upgrade() -> None:
    """Add three columns to instances, and to tasks when their cancellation was requested."""
    op.add_column("instances", sa.Column("slots", sa.BigInteger()))
    op.add_column("instances", sa.Column("running", sa.BigInteger()))
    op.add_column("instances", sa.Column("blocked", sa.Text()))
    op.add_column("tasks", sa.Column("cancel_requested_at", sa.BigInteger()))
