"""Which attempt has written an event, and where attempts have taken over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0106"
down_revision = "0105"


def upgrade() -> None:
    """Add two columns to events, and three to tasks."""
    op.add_column("events", sa.Column("attempt", sa.BigInteger()))
    op.add_column("events", sa.Column("step_run", sa.BigInteger()))
    op.add_column("tasks", sa.Column("repeats_from", sa.BigInteger()))
    op.add_column("tasks", sa.Column("unfinished", sa.Text()))
    op.add_column("tasks", sa.Column("takeovers", sa.Text()))
