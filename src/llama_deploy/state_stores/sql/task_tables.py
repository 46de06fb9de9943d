"""Which tables have rows of a task or of a session: those with its key, so a new table is one of them."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from llama_deploy.state_stores.sql.tables import metadata, questions, removed_tasks, sessions, tasks

_TASK: Final = "task_id"
_SESSION: Final = "session_id"
_QUESTION: Final = "question_id"
_KEPT: Final = frozenset({tasks.name, removed_tasks.name})
"""The task itself, and what stays when it is removed."""

TABLES_OF_TASKS: Final = tuple(
    table for table in metadata.sorted_tables if _TASK in table.c and table.name not in _KEPT
)
"""The tables whose rows belong to a task, and are deleted with it."""

TABLES_OF_QUESTIONS: Final = tuple(
    table for table in metadata.sorted_tables if _QUESTION in table.c and _TASK not in table.c
)
"""The tables whose rows belong to a question, and are deleted with its task."""

TABLES_OF_SESSIONS: Final = tuple(
    table
    for table in metadata.sorted_tables
    if _SESSION in table.c and _TASK not in table.c and table.name != sessions.name
)
"""The tables whose rows belong to a session but not to a task of it."""


def deletes_of_tasks(task_ids: sa.BindParameter[str] | sa.Select[tuple[str]]) -> tuple[sa.Delete, ...]:
    """Return the statements, in their order, that delete what belongs to some tasks, but not the tasks."""
    their_questions = sa.select(questions.c.question_id).where(questions.c.task_id.in_(task_ids))
    return (
        *(sa.delete(table).where(table.c.question_id.in_(their_questions)) for table in TABLES_OF_QUESTIONS),
        *(sa.delete(table).where(table.c.task_id.in_(task_ids)) for table in TABLES_OF_TASKS),
    )


def number_column(table: sa.Table) -> sa.Column[Any] | None:
    """Return the column by which the rows of one task are numbered: the second one of the primary key.

    None: the rows of a task are not ordered by its key.
    """
    key = list(table.primary_key)
    if len(key) > 1 and key[0].name == _TASK and isinstance(key[1].type, sa.Integer):
        return key[1]
    return None


def text_columns(table: sa.Table) -> list[sa.Column[str]]:
    """Return the columns that hold the most of a row: the texts that are in no key."""
    return [
        column
        for column in table.c
        if isinstance(column.type, sa.Text | sa.LargeBinary) and not column.primary_key
    ]
