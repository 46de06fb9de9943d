"""What feeds read of the tasks, in SQL."""

# The contract documents the methods.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from llama_deploy.state_stores.feed_repository import FeedRepository, TaskChangeRecord
from llama_deploy.state_stores.sql.access import SQLRepository, ids, limit
from llama_deploy.state_stores.sql.queries import Mapper, Query
from llama_deploy.state_stores.sql.tables import tasks
from llama_deploy.types import TaskStatus

_CHANGE: Final = Mapper(TaskChangeRecord, tasks)

_BY_ID: Final = Query.unlocked(_CHANGE.where(tasks.c.task_id.in_(ids)))
_since = sa.bindparam("since", type_=tasks.c.status_changed_at.type)


def _changed_since(status: TaskStatus) -> Query:
    """Return the query for a status: the condition of a partial index has to be spelled out."""
    has_status = tasks.c.status == sa.literal_column(f"'{status.value}'")
    is_known = sa.and_(tasks.c.status_changed_at == _since, tasks.c.task_id <= sa.bindparam("after"))
    conditions = [has_status, tasks.c.status_changed_at >= _since, sa.not_(is_known)]
    if status.is_terminal:
        conditions.append(tasks.c.finished_at.is_not(None))
    return Query.unlocked(
        _CHANGE.where(*conditions).order_by(tasks.c.status_changed_at, tasks.c.task_id).limit(limit)
    )


_CHANGED_SINCE: Final = {status: _changed_since(status) for status in TaskStatus}


class SQLFeeds(SQLRepository, FeedRepository):
    """Tasks in the table `tasks`."""

    def load(self, task_ids: Collection[str]) -> dict[str, TaskChangeRecord]:
        found = map(_CHANGE.record, self._access.rows_by_ids(_BY_ID, task_ids))
        return {task.task_id: task for task in found}

    def changed_since(
        self, status: TaskStatus, since: datetime, *, after: str = "", limit: int = 1000
    ) -> list[TaskChangeRecord]:
        parameters = {"since": since, "after": after, "limit": limit}
        return [_CHANGE.record(row) for row in self._access.rows(_CHANGED_SINCE[status], parameters)]
