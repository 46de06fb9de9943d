# Generated from client/aio/task_collection.py by `make sync-client`; do not edit.
"""The tasks of a system: lists, counts, one by its id, and changes of many."""

from __future__ import annotations

import builtins
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from llama_deploy.client.paths import task_path
from llama_deploy.client.sync.server_api import ServerApi
from llama_deploy.client.sync.task import SyncTaskHandle
from llama_deploy.client.sync.task_changes import bulk
from llama_deploy.client.task_queries import Many, build_filter, list_parameters
from llama_deploy.types import TaskStatus, TaskView
from llama_deploy.types.bulk_changes import BulkAction, BulkResult
from llama_deploy.types.task_export import TaskExport
from llama_deploy.types.task_lists import (
    CountBy,
    StepPage,
    TaskCount,
    TaskCounts,
    TaskDetails,
    TaskFilter,
    TaskOrder,
    TaskPage,
)


class TaskCollection:
    """Finds tasks without their ids. You get it as `SyncClient.tasks`.

    Example:
        ```python
        page = client.tasks.list(status="failed", service="report", limit=20)
        for task in page.items:
            print(task.task_id, task.finished_at, task.error)
        ```
    """

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    def list(  # noqa: PLR0913 - keyword-only
        self,
        *,
        status: Many[TaskStatus | str] = (),
        service: str | None = None,
        session: str | None = None,
        tag: Many[str] = (),
        parent: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        q: str | None = None,
        order: TaskOrder | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> TaskPage:
        """Return a page of the tasks that fulfil all conditions.

        A page may have fewer tasks than `limit`, or none, although more follow. Read on while `next_cursor`
        is not None, or use `all`.

        Args:
            status: A status, or several: tasks with one of them.
            service: The service to which they were submitted.
            session: The id of their session.
            tag: A tag, or several: tasks that have all of them.
            parent: The id of the task whose step has submitted them.
            created_after: Tasks that were accepted at this time or later. A naive time is local.
            created_before: Tasks that were accepted before this time. A naive time is local.
            q: The characters with which their id begins. The tasks are ordered by id.
            order: `newest` first or `oldest` first. None: the newest, or by id with `q`.
            limit: The most tasks of the page, at most 1000. None: 50.
            cursor: `next_cursor` of the page before, with the same conditions. None: the first page.

        Raises:
            InvalidRequestError: A condition is not valid.
            InvalidCursorError: The cursor belongs to other conditions.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        wanted = build_filter(
            status=status,
            service=service,
            session=session,
            tag=tag,
            parent=parent,
            created_after=created_after,
            created_before=created_before,
            q=q,
            order=order,
        )
        return self.page(wanted, limit=limit, cursor=cursor)

    def page(self, wanted: TaskFilter, *, limit: int | None = None, cursor: str | None = None) -> TaskPage:
        """Like `list`, for conditions that are kept as an object."""
        parameters = list_parameters(wanted, limit=limit, cursor=cursor)
        return self._api.get("/tasks", TaskPage.model_validate, **parameters)

    def all(self, wanted: TaskFilter, *, page_size: int = 500) -> Generator[TaskDetails]:
        """Yield all tasks that fulfil the conditions, one request per page.

        Args:
            wanted: The conditions. Tasks that are accepted meanwhile may come too.
            page_size: The most tasks of a page.

        Raises:
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        cursor: str | None = None
        while True:
            page = self.page(wanted, limit=page_size, cursor=cursor)
            for task in page.items:
                yield task
            cursor = page.next_cursor
            if cursor is None:
                return

    def count(self, by: Sequence[CountBy] = ("status", "service")) -> builtins.list[TaskCount]:
        """Return how many tasks there are, for each status, each service, or each pair of them.

        Args:
            by: What is counted separately. Empty: all tasks together.

        Raises:
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        counts = self._api.get("/tasks/count", TaskCounts.model_validate, by=",".join(by))
        return [*counts.items]

    def get(self, task_id: str) -> TaskDetails:
        """Return all that is known of a task.

        Raises:
            TaskNotFoundError: The task does not exist.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        return self._api.get(task_path(task_id), TaskDetails.model_validate)

    def steps(self, task_id: str, *, limit: int | None = None, cursor: str | None = None) -> StepPage:
        """Return a page of the steps of a task that have ended, in order.

        Args:
            task_id: The task.
            limit: The most steps of the page, at most 1000; the last write that is shown may add some.
            cursor: `next_cursor` of the page before. None: the first page.

        Raises:
            TaskNotFoundError: The task does not exist.
            InvalidCursorError: The cursor belongs to another task.
        """
        given = {"limit": limit, "cursor": cursor}
        parameters = {name: value for name, value in given.items() if value is not None}
        return self._api.get(task_path(task_id) + "/steps", StepPage.model_validate, **parameters)

    def cancel(self, task_id: str) -> TaskView:
        """Cancel a task and return its state. Idempotent.

        Raises:
            TaskNotFoundError: The task does not exist.
            TaskFinishedError: It has ended with another status.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        return self._api.post_again(task_path(task_id) + "/cancel", TaskView.model_validate)

    def retry(
        self,
        task_id: str,
        *,
        from_: str = "last_step",
        arguments: Mapping[str, Any] | None = None,
        new_task_id: str | None = None,
    ) -> SyncTaskHandle:
        """Try an ended task again, as a new task in the same session; see `SyncTaskHandle.retry`."""
        handle = SyncTaskHandle(self._api, task_id=task_id)
        return handle.retry(from_=from_, arguments=arguments, task_id=new_task_id)

    def export(self, task_id: str) -> TaskExport:
        """Return all that is stored of a task, for a bug report or `llama_deploy.testing.replays.replay`.

        It holds what the task was submitted with, its events and its result, with all that is secret in them.

        Raises:
            TaskNotFoundError: The task does not exist.
            PayloadTooLargeError: It is too large for one document.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        return self._api.get(task_path(task_id) + "/export", TaskExport.model_validate)

    def import_(self, document: TaskExport, *, task_id: str | None = None) -> TaskDetails:
        """Store a copy of an exported task, and return it. Idempotent.

        The copy has ended, as the task had, and nothing runs. It is in a session of its own.

        Args:
            document: What `export` has returned, perhaps of another system; see `TaskExport.read`.
            task_id: The id of the copy. None: that of the task.

        Raises:
            InvalidRequestError: The task had not ended, or the document contradicts itself.
            ConflictError: Another task has the id.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        given = {} if task_id is None else {"task_id": task_id}
        body = document.model_dump(mode="json")
        return self._api.post_again("/tasks/import", TaskDetails.model_validate, json=body, **given)

    def bulk(
        self,
        action: BulkAction,
        wanted: TaskFilter,
        *,
        dry_run: bool = True,
        from_: Literal["start", "last_step"] = "last_step",
        every: bool = False,
        batch: int | None = None,
        bulk_id: str | None = None,
    ) -> Generator[BulkResult]:
        """Cancel or retry all tasks that fulfil conditions, and yield what becomes of each batch.

        Example:
            ```python
            failed = TaskFilter(service="report", status=["failed"])
            for done in client.tasks.bulk("retry", failed, dry_run=False):
                print(done.changed, "retried,", done.skipped, "skipped")
            ```

        A task that was retried before is skipped, so the same change may be made again. If the program ends
        before the change does, run it again with the same `bulk_id`: it then counts as if it had not ended.

        Args:
            action: `cancel`: open tasks are cancelled. `retry`: ended tasks are retried.
            wanted: The conditions. Without `status`: the open tasks for `cancel`, and those that have failed
                or timed out for `retry`. Tasks that are accepted after the begin are left out.
            dry_run: Only tell what would be done. Set it to False to do it.
            from_: For `retry`: `last_step` or `start`; see `SyncTaskHandle.retry`.
            every: Allow conditions that match the tasks of all services.
            batch: How many tasks to change with one request, at most 500. None: 100.
            bulk_id: Identifies the change. None: a random id.

        Raises:
            InvalidRequestError: There are no conditions, or one of them is not valid.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        options = {"dry_run": dry_run, "origin": from_, "all": every, "limit": batch, "bulk_id": bulk_id}
        for result in bulk(self._api, action, wanted, **options):
            yield result
