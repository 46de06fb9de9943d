"""Whose tasks, sessions and questions are that a request names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.errors import (
    QuestionNotFoundError,
    SessionNotFoundError,
    TaskNotFoundError,
    TaskRemovedError,
)
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.types.keys import public_id, tenant_of
from llama_deploy.types.owners import Owner
from llama_deploy.web.edge.access_table import IdKind


class StoredOwners:
    """Refuses what belongs to others, as if it did not exist. See `OwnedRows`.

    Keys name the tenant, so tasks and sessions are only read for callers that are bound to a subject.

    Args:
        store: Has the rows.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def check(
        self, owner: Owner, keys: Mapping[IdKind, Collection[str]], *, existing: Collection[str] = ()
    ) -> None:
        """See `OwnedRows`. A task that was removed belongs to nobody any more.

        Raises:
            UnavailableError: The store does not answer.
        """
        await self._store.read(lambda tx: _check(tx, owner, keys, existing))


def _check(
    tx: StoreTransaction, owner: Owner, keys: Mapping[IdKind, Collection[str]], existing: Collection[str]
) -> None:
    if owner.subject is not None:
        # Sessions first, as those do who look for a task in a session.
        session_ids = keys.get(IdKind.SESSION, ())
        sessions = tx.sessions.load(session_ids, lean=True) if session_ids else {}
        for session_id in session_ids:
            if (session := sessions.get(session_id)) is not None:
                check_session(session_id, session.subject, owner.subject)
            elif session_id in existing:
                raise missing_session(session_id)
        for task_id in keys.get(IdKind.TASK, ()):
            _check_task(tx, task_id, owner.subject, must_exist=task_id in existing)
    question_ids = keys.get(IdKind.QUESTION, ())
    for question in tx.questions.load(question_ids).values() if question_ids else ():
        is_own = owner.subject in (None, question.subject, question.assignee)
        if tenant_of(question.task_id) != owner.tenant or not is_own:
            raise QuestionNotFoundError(
                f"there is no question {question.question_id}", question_id=question.question_id
            )


def _check_task(tx: StoreTransaction, task_id: str, subject: str, *, must_exist: bool) -> None:
    try:
        task = find_task(tx, task_id, lean=True)
    except TaskRemovedError:
        raise missing(task_id) from None
    except TaskNotFoundError:
        if must_exist:
            raise
        return  # a new one may get this id
    check_task(task_id, task.subject, subject)


def check_task(task_id: str, of: str | None, subject: str | None) -> None:
    """Do nothing if a task belongs to the subject of a caller, or the caller is not bound to one.

    Raises:
        TaskNotFoundError: It belongs to another subject.
    """
    if subject not in (None, of):
        raise missing(task_id)


def check_session(session_id: str, of: str | None, subject: str | None) -> None:
    """Do nothing if a session belongs to the subject of a caller, as `check_task`.

    Raises:
        SessionNotFoundError: It belongs to another subject.
    """
    if subject not in (None, of):
        raise missing_session(session_id)


def missing(task_id: str) -> TaskNotFoundError:
    """Return the error for a task that does not exist, for this caller."""
    shown = public_id(task_id)
    return TaskNotFoundError(f"there is no task {shown}", task_id=shown)


def missing_session(session_id: str) -> SessionNotFoundError:
    """Return the error for a session that does not exist, for this caller."""
    shown = public_id(session_id)
    return SessionNotFoundError(f"there is no session {shown}", session_id=shown)
