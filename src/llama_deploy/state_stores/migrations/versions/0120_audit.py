"""The audit log."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0120"
down_revision = "0119"

_OF_TENANT: Final = "tenant != ''"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "audit",
        sa.Column(
            "position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, primary_key=True
        ),
        sa.Column("at", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("action", "target", "tenant", "outcome", "subject", "home")
        ),
        *(sa.Column(name, sa.Text()) for name in ("key_id", "acting_for", "address", "details")),
        sa.PrimaryKeyConstraint("position", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at", "position"])
    op.create_index("ix_audit_target", "audit", ["target", "at", "position"])
    op.create_index("ix_audit_subject", "audit", ["subject", "at", "position"])
    op.create_index(
        "ix_audit_tenant",
        "audit",
        ["tenant", "at", "position"],
        sqlite_where=sa.text(_OF_TENANT),
        postgresql_where=sa.text(_OF_TENANT),
    )
