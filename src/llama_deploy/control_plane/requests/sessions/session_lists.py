"""Lists of sessions, and the history of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal

from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.errors import SessionNotFoundError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import SessionHeadRecord, TaskRecord, TaskSizeRecord
from llama_deploy.types import (
    HistoryItem,
    HistoryPage,
    SessionPage,
    SessionSummary,
    TaskResult,
)
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import public_id
from llama_deploy.types.owners import Owner

SessionOrder = Literal["newest", "oldest"]
"""By id, which grows with time if the library has made it."""

_MAX_PAGE_CHARACTERS: Final = 4 * 1024 * 1024
"""Of the inputs and results on a page of a history. One task may be larger."""


class SessionLists:
    """Reads sessions and histories in pages."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def page(
        self, owner: Owner, *, tag: str | None, order: SessionOrder, cursor: str | None, limit: int
    ) -> SessionPage:
        """Return a page of sessions.

        Args:
            owner: To whom they belong.
            tag: Only sessions with this tag. None: all.
            order: Their order.
            cursor: Where the page begins. None: with the first session.
            limit: How many sessions to return at most.

        Raises:
            InvalidCursorError: The cursor is not one of this list.
        """
        this = {"list": "sessions", "tag": tag, "order": order}
        after: str | None = None
        if cursor is not None:
            after = owner.key_of(str(decode_cursor(cursor, of=this, kinds=[str])[0]))

        def read(tx: StoreTransaction) -> list[SessionHeadRecord]:
            newest_first = order == "newest"
            return tx.sessions.heads(
                owner=owner, tag=tag, after=after, newest_first=newest_first, limit=limit + 1
            )

        found = await self._store.read(read)
        following = (
            None if len(found) <= limit else encode_cursor([public_id(found[limit - 1].session_id)], of=this)
        )
        return SessionPage(items=[session_summary(each) for each in found[:limit]], next_cursor=following)

    async def history(self, session_id: str, *, cursor: str | None, limit: int) -> HistoryPage:
        """Return tasks of a session with their arguments and results, in the order of their acceptance.

        A page ends early if they are large.

        Raises:
            SessionNotFoundError: The session does not exist.
            InvalidCursorError: The cursor is not one of this history.
        """
        this = {"list": "history", "session": session_id}
        after: tuple[datetime, int] | None = None
        if cursor is not None:
            created, position = decode_cursor(cursor, of=this, kinds=[int, int])
            after = time_in_cursor(created), int(position)

        def read(tx: StoreTransaction) -> tuple[list[TaskRecord], TaskSizeRecord | None]:
            if session_id not in tx.sessions.policies([session_id]):
                raise SessionNotFoundError(
                    f"there is no session {public_id(session_id)}", session_id=public_id(session_id)
                )
            sizes = tx.tasks.sizes_in_session(session_id, after=after, limit=limit + 1)
            shown = _fitting(sizes[:limit])
            tasks = tx.tasks.load([each.task_id for each in shown])
            last = shown[-1] if len(shown) < len(sizes) else None
            return [tasks[each.task_id] for each in shown], last

        tasks, last = await self._store.read(read)
        following = None
        if last is not None:
            following = encode_cursor([to_microseconds(last.created_at), last.position], of=this)
        return HistoryPage(items=[_history_item(task) for task in tasks], next_cursor=following)


def session_summary(session: SessionHeadRecord) -> SessionSummary:
    """Return a session as clients see it in a list."""
    origin, task = session.forked_from, session.forked_at
    return SessionSummary(
        session_id=public_id(session.session_id),
        policy=session.policy,
        tags=json.loads(session.tags),
        created_at=session.created_at,
        state_version=session.version,
        state_changed_at=session.updated_at,
        forked_from=None if origin is None else public_id(origin),
        forked_at=None if task is None else public_id(task),
    )


def _fitting(sizes: Sequence[TaskSizeRecord]) -> Sequence[TaskSizeRecord]:
    """Return the first tasks, as many as fit on a page: at least one, if any."""
    total = 0
    for count, size in enumerate(sizes):
        total += size.characters
        if count and total > _MAX_PAGE_CHARACTERS:
            return sizes[:count]
    return sizes


def _history_item(task: TaskRecord) -> HistoryItem:
    result = None if task.result is None else TaskResult.model_validate_json(text_of(task.result))
    return HistoryItem(
        task_id=public_id(task.task_id),
        service_name=task.target,
        status=task.status,
        arguments=_arguments(text_of(task.input)),
        created_at=task.created_at,
        finished_at=task.finished_at,
        result="" if result is None else result.result,
        value=result and result.value,
        error=result and result.error,
    )


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        arguments = json.loads(text)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None
