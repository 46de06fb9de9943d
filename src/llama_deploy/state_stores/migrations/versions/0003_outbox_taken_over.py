"""Messages of the outbox that another control plane may take over.

Those from before have no time, and may be taken at once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the time."""
    op.add_column("outbox", sa.Column("relay_at", sa.BigInteger()))


def downgrade() -> None:
    """Delete it."""
    op.drop_column("outbox", "relay_at")
