"""Which attempt has written an event, and where attempts have taken over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0106"
down_revision = "0105"


def upgrade() -> None:
    """Add a column to events, and two to tasks."""
    op.add_column("events", sa.Column("attempt", sa.BigInteger()))
    op.add_column("tasks", sa.Column("repeats_from", sa.BigInteger()))
    op.add_column("tasks", sa.Column("takeovers", sa.Text()))
