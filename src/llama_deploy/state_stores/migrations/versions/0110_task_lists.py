"""What lists and counts of tasks read, and the history of the steps of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0110"
down_revision = "0106"

_OPEN: Final = "finished_at IS NULL"
_ENDED: Final = "finished_at IS NOT NULL"

_SQLITE_TRIGGERS: Final = (
    """
    CREATE TRIGGER task_added AFTER INSERT ON tasks WHEN new.tags <> '[]' OR new.finished_at IS NOT NULL
    BEGIN
        INSERT OR IGNORE INTO task_tags (tag, created_at, position, service_name)
        SELECT value, new.created_at, new.position, new.service_name FROM json_each(new.tags);
        INSERT INTO task_counts (service_name, status, part, task_count)
        SELECT new.service_name, new.status, 0, 1 WHERE new.finished_at IS NOT NULL
        ON CONFLICT (service_name, status, part) DO UPDATE SET task_count = task_count + 1;
    END
    """,
    """
    CREATE TRIGGER task_ended AFTER UPDATE OF finished_at ON tasks
    WHEN old.finished_at IS NULL AND new.finished_at IS NOT NULL
    BEGIN
        INSERT INTO task_counts (service_name, status, part, task_count)
        VALUES (new.service_name, new.status, 0, 1)
        ON CONFLICT (service_name, status, part) DO UPDATE SET task_count = task_count + 1;
    END
    """,
    """
    CREATE TRIGGER task_deleted AFTER DELETE ON tasks
    BEGIN
        DELETE FROM task_steps WHERE task_id = old.task_id;
        DELETE FROM task_tags
        WHERE old.tags <> '[]' AND created_at = old.created_at AND position = old.position
        AND tag IN (SELECT value FROM json_each(old.tags));
        UPDATE task_counts SET task_count = task_count - 1
        WHERE old.finished_at IS NOT NULL
        AND service_name = old.service_name AND status = old.status AND part = 0;
    END
    """,
)

# In each function, because calling another one takes as long as counting.
_COUNT_IN_PART: Final = """
        INSERT INTO task_counts AS known (service_name, status, part, task_count)
        VALUES ({0}.service_name, {0}.status, pg_backend_pid() % 256, {1})
        ON CONFLICT (service_name, status, part)
        DO UPDATE SET task_count = known.task_count + excluded.task_count;
    """

_POSTGRESQL_TRIGGERS: Final = (
    f"""
    CREATE FUNCTION task_added() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO task_tags (tag, created_at, position, service_name)
        SELECT value, new.created_at, new.position, new.service_name
        FROM json_array_elements_text(new.tags::json)
        ON CONFLICT DO NOTHING;
        IF new.finished_at IS NOT NULL THEN
            {_COUNT_IN_PART.format("new", 1)}
        END IF;
        RETURN NULL;
    END $$
    """,  # noqa: S608 - nothing comes from elsewhere
    """
    CREATE TRIGGER task_added AFTER INSERT ON tasks FOR EACH ROW
    WHEN (new.tags <> '[]' OR new.finished_at IS NOT NULL) EXECUTE FUNCTION task_added()
    """,
    f"""
    CREATE FUNCTION task_ended() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        {_COUNT_IN_PART.format("new", 1)}
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER task_ended AFTER UPDATE OF finished_at ON tasks FOR EACH ROW
    WHEN (old.finished_at IS NULL AND new.finished_at IS NOT NULL) EXECUTE FUNCTION task_ended()
    """,
    f"""
    CREATE FUNCTION task_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM task_steps WHERE task_id = old.task_id;
        IF old.tags <> '[]' THEN
            DELETE FROM task_tags WHERE created_at = old.created_at AND position = old.position
            AND tag IN (SELECT json_array_elements_text(old.tags::json));
        END IF;
        IF old.finished_at IS NOT NULL THEN
            {_COUNT_IN_PART.format("old", -1)}
        END IF;
        RETURN NULL;
    END $$
    """,  # noqa: S608 - nothing comes from elsewhere
    """
    CREATE TRIGGER task_deleted AFTER DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION task_deleted()
    """,
)

_COUNT: Final = """
    INSERT INTO task_counts (service_name, status, part, task_count)
    SELECT service_name, status, 0, count(*) FROM tasks WHERE finished_at IS NOT NULL
    GROUP BY service_name, status
    """


def upgrade() -> None:
    """Add columns, indexes and three tables; two of these follow from `tasks`, by triggers."""
    op.add_column("tasks", sa.Column("started_at", sa.BigInteger()))
    op.add_column("tasks", sa.Column("waiting_since", sa.BigInteger()))
    op.add_column("tasks", sa.Column("progress", sa.Text()))
    op.add_column("tasks", sa.Column("past_attempts", sa.Text()))
    op.add_column("tasks", sa.Column("last_steps", sa.Text()))
    op.add_column("tasks", sa.Column("retry_of", sa.Text()))
    op.add_column("instances", sa.Column("present", sa.Text()))
    op.create_index("ix_tasks_list_session", "tasks", ["session_id", "created_at", "position"])
    _create_partial_index(
        "ix_tasks_list_open", ["created_at", "position", "service_name", "status", "waiting_since"], _OPEN
    )
    _create_partial_index("ix_tasks_list_status", ["status", "created_at", "position"], _ENDED)
    _create_partial_index(
        "ix_tasks_list_service", ["service_name", "status", "created_at", "position"], _ENDED
    )
    _create_partial_index(
        "ix_tasks_list_parent",
        ["parent_task_id", "created_at", "position"],
        "parent_task_id IS NOT NULL",
    )
    if op.get_bind().dialect.name == "postgresql":
        op.create_index(
            "ix_tasks_list_id", "tasks", ["task_id"], postgresql_ops={"task_id": "text_pattern_ops"}
        )
    op.create_table(
        "task_tags",
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "created_at", "position", "service_name", name="pk_task_tags"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_counts",
        sa.Column("service_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("task_count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("service_name", "status", "part", name="pk_task_counts"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "task_steps",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("steps", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "attempt", "first", name="pk_task_steps"),
        sqlite_with_rowid=False,
    )
    _derive()


def _derive() -> None:
    """Count what has ended, once; from then on triggers count. Writers wait until this is committed."""
    connection = op.get_bind()
    triggers = _POSTGRESQL_TRIGGERS if connection.dialect.name == "postgresql" else _SQLITE_TRIGGERS
    for statement in (*triggers, _COUNT):
        connection.exec_driver_sql(statement)


def _create_partial_index(name: str, columns: Sequence[str], condition: str) -> None:
    op.create_index(
        name, "tasks", columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
    )
