"""Tags, forks and earlier states of sessions."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0114"
down_revision = "0113"

# A control plane of an earlier release deletes sessions without knowing of these tables.
_DELETE: Final = """
    BEGIN
        DELETE FROM session_tags WHERE session_id = old.session_id;
        DELETE FROM session_states WHERE session_id = old.session_id;
    """


def upgrade() -> None:
    """Add four columns to sessions, and the tables of their tags and of their earlier states."""
    op.add_column("sessions", sa.Column("tags", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("sessions", sa.Column("forked_from", sa.Text()))
    op.add_column("sessions", sa.Column("forked_at", sa.Text()))
    op.add_column("sessions", sa.Column("origin", sa.Text()))
    op.create_table(
        "session_tags",
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "session_id", name="pk_session_tags"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_session_tags_session", "session_tags", ["session_id"])
    op.create_table(
        "session_states",
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("stored_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "version", name="pk_session_states"),
    )
    connection = op.get_bind()
    head = "CREATE TRIGGER session_deleted AFTER DELETE ON sessions FOR EACH ROW"
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "CREATE FUNCTION session_deleted() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ {_DELETE} RETURN NULL; END $$"
        )
        connection.exec_driver_sql(f"{head} EXECUTE FUNCTION session_deleted()")
    else:
        connection.exec_driver_sql(f"{head} {_DELETE} END")
