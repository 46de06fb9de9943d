"""Pages of lists that are bounded in rows and in bytes, without reading more than a page.

Rows are read lean, a few at a time, and the large values only of those that are on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from llama_deploy.errors import SessionNotFoundError, TaskNotFoundError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.large_values import Deferred
from llama_deploy.state_stores.records import SessionRecord, TaskRecord
from llama_deploy.types.json_values import utf8_bytes
from llama_deploy.types.keys import public_id
from llama_deploy.types.owners import Owner

PAGE_BYTES: Final = 4 * 1024 * 1024
"""With how many bytes of values a page is full. So it has one row more at most."""
_ROW_BYTES: Final = 200
"""What a row counts beside its values."""
_CHUNK: Final = 50
"""How many rows are read at a time."""


def session_page(
    tx: StoreTransaction, *, owner: Owner, after: str, limit: int
) -> list[tuple[SessionRecord, list[str]]]:
    """Return the sessions of an owner whose ids follow `after`, in order, each with the ids of its tasks.

    There are fewer than `limit` if they are large. No sessions are returned only if none follow.
    """
    page: list[tuple[SessionRecord, list[str]]] = []
    size = 0
    for session, task_ids in islice(_sessions(tx, owner, after), limit):
        page.append((session, task_ids))
        size += _ROW_BYTES + _size_of(session.state) + sum(map(len, task_ids))
        if size >= PAGE_BYTES:
            break
    deferred = [session.session_id for session, _ in page if isinstance(session.state, Deferred)]
    whole = tx.sessions.load(deferred) if deferred else {}
    return [(whole.get(session.session_id, session), task_ids) for session, task_ids in page]


def task_page(tx: StoreTransaction, session_id: str, *, after: str, limit: int) -> list[TaskRecord]:
    """Return the tasks of a session that were accepted after the one with the id `after`, in order.

    There are fewer than `limit` if they are large. No tasks are returned only if none follow.

    Raises:
        SessionNotFoundError: The session does not exist.
        TaskNotFoundError: The session does not have the task `after`.
    """
    if not tx.sessions.load([session_id], lean=True):
        shown = public_id(session_id)
        raise SessionNotFoundError(f"there is no session {shown}", session_id=shown)
    task_ids = tx.tasks.ids_of_sessions([session_id]).get(session_id, [])
    if after and after not in task_ids:
        raise TaskNotFoundError(
            f"session {public_id(session_id)} has no task {public_id(after)}", task_id=public_id(after)
        )
    page: list[TaskRecord] = []
    size = 0
    start = task_ids.index(after) + 1 if after else 0
    for task in _tasks(tx, task_ids[start : start + limit]):
        page.append(task)
        size += _ROW_BYTES + _size_of(task.input)
        if size >= PAGE_BYTES:
            break
    deferred = [task.task_id for task in page if isinstance(task.input, Deferred)]
    whole = tx.tasks.load(deferred) if deferred else {}
    return [whole.get(task.task_id, task) for task in page]


def _sessions(tx: StoreTransaction, owner: Owner, after: str) -> Iterator[tuple[SessionRecord, list[str]]]:
    while chunk := tx.sessions.page(owner=owner, after=after, limit=_CHUNK, lean=True):
        task_ids = tx.tasks.ids_of_sessions([session.session_id for session in chunk])
        for session in chunk:
            yield session, task_ids.get(session.session_id, [])
        after = chunk[-1].session_id


def _tasks(tx: StoreTransaction, task_ids: Sequence[str]) -> Iterator[TaskRecord]:
    for start in range(0, len(task_ids), _CHUNK):
        some = task_ids[start : start + _CHUNK]
        found = tx.tasks.load(some, lean=True)
        yield from (found[task_id] for task_id in some if task_id in found)


def _size_of(value: str | Deferred) -> int:
    return value.size if isinstance(value, Deferred) else utf8_bytes(value)
