"""Subjects of tenants, and what lists and counts of tenants and subjects read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0119"
down_revision = "0118"

_OF_TENANT: Final = "tenant != ''"
_OF_SUBJECT: Final = "subject IS NOT NULL"
_OPEN_TASK: Final = "finished_at IS NULL"
_OPEN_QUESTION: Final = "state = 'open'"

_IS_OWNED: Final = "({row}.tenant <> '' OR {row}.subject IS NOT NULL)"
_CHANGES: Final = (
    ("owned_task_added", "AFTER INSERT", "new", "new.finished_at IS NOT NULL", 1),
    (
        "owned_task_ended",
        "AFTER UPDATE OF finished_at",
        "new",
        "old.finished_at IS NULL AND new.finished_at IS NOT NULL",
        1,
    ),
    ("owned_task_deleted", "AFTER DELETE", "old", "old.finished_at IS NOT NULL", -1),
)
"""Triggers: their names, after what, the row that they look at, when, and by how much the counts change."""

_COUNT_IN_SQLITE: Final = """
    INSERT INTO owner_counts (tenant, subject, service_name, status, part, task_count)
    SELECT {row}.tenant, {subject}, {row}.service_name, {row}.status, 0, {change} WHERE {condition}
    ON CONFLICT (tenant, subject, service_name, status, part)
    DO UPDATE SET task_count = task_count + {change};
"""
_COUNT_IN_POSTGRESQL: Final = """
    CREATE FUNCTION count_owned_task(owner text, of text, service text, state text, change bigint)
    RETURNS void LANGUAGE sql AS $$
        INSERT INTO owner_counts AS known (tenant, subject, service_name, status, part, task_count)
        VALUES (owner, of, service, state, pg_backend_pid() % 256, change)
        ON CONFLICT (tenant, subject, service_name, status, part)
        DO UPDATE SET task_count = known.task_count + excluded.task_count
    $$
"""
_CHANGE_IN_POSTGRESQL: Final = """
    CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF {row}.tenant <> '' THEN
            PERFORM count_owned_task({row}.tenant, '', {row}.service_name, {row}.status, {change});
        END IF;
        IF {row}.subject IS NOT NULL THEN
            PERFORM count_owned_task(
                {row}.tenant, {row}.subject, {row}.service_name, {row}.status, {change});
        END IF;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    """Add columns, partial indexes without rows while there are no tenants, and a table of counts."""
    for table in ("sessions", "tasks", "questions", "api_keys"):
        op.add_column(table, sa.Column("subject", sa.Text()))
    _create_partial_index("ix_sessions_tenant", "sessions", ["tenant", "session_id"], _OF_TENANT)
    _create_partial_index("ix_sessions_subject", "sessions", ["tenant", "subject", "session_id"], _OF_SUBJECT)
    _create_partial_index("ix_tasks_list_tenant", "tasks", ["tenant", "created_at", "position"], _OF_TENANT)
    _create_partial_index(
        "ix_tasks_list_subject", "tasks", ["tenant", "subject", "created_at", "position"], _OF_SUBJECT
    )
    _create_partial_index("ix_tasks_open_tenant", "tasks", ["tenant"], f"{_OPEN_TASK} AND {_OF_TENANT}")
    _create_partial_index(
        "ix_tasks_open_subject", "tasks", ["tenant", "subject"], f"{_OPEN_TASK} AND {_OF_SUBJECT}"
    )
    _create_partial_index(
        "ix_questions_tenant",
        "questions",
        ["tenant", "since", "question_id"],
        f"{_OPEN_QUESTION} AND {_OF_TENANT}",
    )
    _create_partial_index(
        "ix_questions_subject",
        "questions",
        ["tenant", "subject", "since", "question_id"],
        f"{_OPEN_QUESTION} AND {_OF_SUBJECT}",
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant", "created_at", "key_id"])
    op.create_table(
        "owner_counts",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("tenant", "subject", "service_name", "status")
        ),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("task_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant", "subject", "service_name", "status", "part", name="pk_owner_counts"
        ),
        sqlite_with_rowid=False,
    )
    _create_triggers()


def _create_triggers() -> None:
    """Count the ended tasks of tenants and subjects. There are none yet: no release has stored one."""
    connection = op.get_bind()
    is_postgresql = connection.dialect.name == "postgresql"
    if is_postgresql:
        connection.exec_driver_sql(_COUNT_IN_POSTGRESQL)
    for name, what, row, condition, change in _CHANGES:
        when = f"{condition} AND {_IS_OWNED.format(row=row)}"
        head = f"CREATE TRIGGER {name} {what} ON tasks FOR EACH ROW WHEN ({when})"
        if is_postgresql:
            connection.exec_driver_sql(_CHANGE_IN_POSTGRESQL.format(name=name, row=row, change=change))
            connection.exec_driver_sql(f"{head} EXECUTE FUNCTION {name}()")
        else:
            counts = [
                _COUNT_IN_SQLITE.format(row=row, subject=subject, condition=owned, change=change)
                for subject, owned in (
                    ("''", f"{row}.tenant <> ''"),
                    (f"{row}.subject", f"{row}.subject IS NOT NULL"),
                )
            ]
            connection.exec_driver_sql(f"{head} BEGIN {''.join(counts)} END")


def _create_partial_index(name: str, table: str, columns: Sequence[str], condition: str) -> None:
    op.create_index(
        name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
    )
