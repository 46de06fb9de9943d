"""Questions of tasks, and the callbacks that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0111"
down_revision = "0110"

_OPEN: Final = "state = 'open'"

# A control plane of an earlier release ends and deletes tasks without knowing of their questions.
_WHEN_ENDED: Final = (
    "old.finished_at IS NULL AND new.finished_at IS NOT NULL AND new.wait_reports IS NOT NULL"
)
_WHEN_DELETED: Final = "old.wait_reports IS NOT NULL"
_END: Final = """
    BEGIN
        DELETE FROM question_tags WHERE question_id IN
        (SELECT question_id FROM questions WHERE task_id = new.task_id AND state = 'open');
        UPDATE questions SET state = 'ended', closed_at = new.finished_at
        WHERE task_id = new.task_id AND state = 'open';
    """
_DELETE: Final = """
    BEGIN
        DELETE FROM question_tags WHERE question_id IN
        (SELECT question_id FROM questions WHERE task_id = old.task_id);
        DELETE FROM questions WHERE task_id = old.task_id;
        DELETE FROM callbacks WHERE task_id = old.task_id;
    """
_TRIGGERS: Final = (
    ("questions_ended", "AFTER UPDATE OF finished_at", _WHEN_ENDED, _END),
    ("questions_deleted", "AFTER DELETE", _WHEN_DELETED, _DELETE),
)


def upgrade() -> None:
    """Add three tables, and a column to tasks that says whether a task may have questions."""
    op.add_column("tasks", sa.Column("wait_reports", sa.BigInteger()))
    op.create_table(
        "questions",
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("question_id", "task_id", "session_id", "service_name")
        ),
        sa.Column("since", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("event_types", "prompt", "answer_schema", "state")
        ),
        *(sa.Column(name, sa.Text()) for name in ("step", "checks", "requirements", "prompt_type")),
        sa.Column("deadline", sa.BigInteger()),
        sa.Column("times_out_at", sa.BigInteger()),
        sa.Column("default_answer", sa.Text()),
        sa.Column("assignee", sa.Text()),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("closed_at", sa.BigInteger()),
        sa.Column("reason", sa.Text()),
        sa.Column("answer_key", sa.Text()),
        sa.Column("tenant", sa.Text(), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("question_id", name="pk_questions"),
    )
    op.create_index("ix_questions_task", "questions", ["task_id", "state", "since", "question_id"])
    _create_partial_index("ix_questions_open", ["since", "question_id"])
    _create_partial_index("ix_questions_service", ["service_name", "since", "question_id"])
    _create_partial_index("ix_questions_assignee", ["assignee", "since", "question_id"])
    _create_partial_index(
        "ix_questions_deadline", ["deadline", "question_id"], f"{_OPEN} AND deadline IS NOT NULL"
    )
    op.create_table(
        "question_tags",
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tag", "since", "question_id", name="pk_question_tags"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_question_tags_question", "question_tags", ["question_id"])
    op.create_table(
        "callbacks",
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_callbacks"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_callbacks_task", "callbacks", ["task_id"])
    connection = op.get_bind()
    for name, change, condition, body in _TRIGGERS:
        head = f"CREATE TRIGGER {name} {change} ON tasks FOR EACH ROW WHEN ({condition})"
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} RETURN NULL; END $$"
            )
            connection.exec_driver_sql(f"{head} EXECUTE FUNCTION {name}()")
        else:
            connection.exec_driver_sql(f"{head} {body} END")


def _create_partial_index(name: str, columns: Sequence[str], condition: str = _OPEN) -> None:
    op.create_index(
        name, "questions", columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition)
    )
