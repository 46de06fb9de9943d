"""API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0118"
down_revision = "0117"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "api_keys",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("key_id", "secret_hash", "name", "scopes", "created_by")
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger()),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.Column("tenant", sa.Text(), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_api_keys_created", "api_keys", ["created_at", "key_id"])
