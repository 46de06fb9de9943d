"""Requests that change all tasks of a filter, in batches that may be repeated."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.control_plane.requests.tasks.retry_requests import Retries
from llama_deploy.control_plane.requests.tasks.task_lists import conditions_of
from llama_deploy.control_plane.requests.tasks.waiting_tasks import WaitingTasks
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import InvalidRequestError, LlamaDeployError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.list_repositories import ListedTask, ListKey
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.bulk_changes import MAX_SAMPLE, BulkItem, BulkRequest, BulkResult
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import internal_key, public_id, tenant_of
from llama_deploy.types.owners import Owner
from llama_deploy.types.retries import FROM_START, TaskRetry

_DRY_PAGES: Final = 10
_DRY_PAGE: Final = 1000
"""How many tasks a dry run looks at with one request: so many pages of so many."""
_ID_BYTES: Final = 16
_OPEN: Final = frozenset(status for status in TaskStatus if not status.is_terminal)
_FAILED: Final = frozenset({TaskStatus.FAILED, TaskStatus.TIMED_OUT})


class _Place(NamedTuple):
    """Where a batch begins."""

    bulk_id: str
    began_at: datetime
    """When the first batch did. Tasks that were accepted later, such as retries, do not belong to it."""
    after: ListKey | str | None
    """The last task of the batch before."""
    owner: Owner
    by: Actor | None


class _Page(NamedTuple):
    tasks: list[ListedTask]
    last: ListKey | str | None
    """None: there are no more."""


@dataclass(frozen=True, slots=True)
class BulkChanges:
    """Cancels or retries the tasks of a filter."""

    store: StateStore
    writer: Writer
    retries: Retries
    waiting: WaitingTasks
    """Rejects tasks of services for which too many wait."""
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""

    async def change(self, request: BulkRequest, *, owner: Owner, by: Actor | None = None) -> BulkResult:
        """Change one batch, or tell what would be changed. Repeating it is harmless.

        Args:
            request: What to change; its filter has keys in place of ids.
            owner: Whose tasks.
            by: Who is named in the audit log. None: nobody.

        Raises:
            InvalidCursorError: The cursor belongs to another change.
            InvalidRequestError: The cursor and `bulk_id` contradict each other.
            OverloadedError: Too many tasks of a service wait; none of the batch was retried.
            UnavailableError: The store does not answer. A part of the batch may be changed; repeat it.
        """
        place = self._place(request, owner, by)
        if request.dry_run:
            items, last = await self._look(request, place)
        else:
            page = await self.store.read(lambda tx: _read(tx, request, place, limit=request.limit))
            change = self._cancel if request.action == "cancel" else self._retry
            items, last = await change(request, place, page.tasks), page.last
        skipped = sum(item.reason is not None for item in items)
        return BulkResult(
            bulk_id=place.bulk_id,
            matched=len(items),
            changed=len(items) - skipped,
            skipped=skipped,
            items=items[:MAX_SAMPLE] if request.dry_run else items,
            next_cursor=None if last is None else _cursor(request, place, last),
        )

    def _place(self, request: BulkRequest, owner: Owner, by: Actor | None) -> _Place:
        if request.cursor is None:
            return _Place(request.bulk_id, self.clock(), None, owner, by)
        kinds: tuple[type[int | str], ...] = (str, int, str) if request.filter.q else (str, int, int, int)
        bulk_id, began, *key = decode_cursor(request.cursor, of=_identity(request), kinds=kinds)
        if "bulk_id" in request.model_fields_set and request.bulk_id != bulk_id:
            raise InvalidRequestError(
                f"the cursor belongs to the bulk change {bulk_id}, and bulk_id is {request.bulk_id}; leave"
                " out bulk_id if you send a cursor"
            )
        return _Place(str(bulk_id), time_in_cursor(began), _key(key, owner), owner, by)

    async def _look(self, request: BulkRequest, place: _Place) -> tuple[list[BulkItem], ListKey | str | None]:
        """Return what would become of many tasks."""
        items: list[BulkItem] = []
        for _ in range(_DRY_PAGES):
            tasks, last, retried = await self.store.read(
                lambda tx, place=place: _read_with_retries(tx, request, place)  # type: ignore[misc]
            )
            items += [_foreseen(request, task, retried.get(task.task_id)) for task in tasks]
            place = place._replace(after=last)
            if last is None:
                break
        return items, place.after

    async def _cancel(
        self,
        request: BulkRequest,  # noqa: ARG002 - as `_retry`
        place: _Place,
        tasks: Sequence[ListedTask],
    ) -> list[BulkItem]:
        outcomes = await self.writer.write_all([_cancelling(task.task_id, place) for task in tasks])
        return [_item(task, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]

    async def _retry(
        self, request: BulkRequest, place: _Place, tasks: Sequence[ListedTask]
    ) -> list[BulkItem]:
        services = Counter(task.service_name for task in tasks)
        for name in services:
            await self.waiting.check(name)
        retrying = [
            self.retries.accept(
                task,
                TaskRetry.model_construct(
                    origin=request.origin, task_id=_retry_id(place.bulk_id, task.task_id)
                ),
                once=True,
                by=place.by,
                bulk_id=place.bulk_id,
            )
            for task in tasks
        ]
        # Those that come together share a transaction.
        outcomes = await asyncio.gather(*retrying, return_exceptions=True)
        return [_item(task, outcome) for task, outcome in zip(tasks, outcomes, strict=True)]


def _cancelling(task_id: str, place: _Place) -> Command[str | None]:
    """Return the command that cancels a task, and returns why there is nothing to do."""

    def run(unit: Unit) -> str | None:
        task = unit.tasks.get(task_id)
        if task.status.is_terminal or task.cancel_requested:
            return _why_not_cancelled(task.status)
        unit.apply(lifecycle.cancel(task, at=unit.now))
        unit.audit.note(AuditAction.TASK_CANCEL, task_id, bulk=place.bulk_id)
        return None

    return Command(run, Reads.of_tasks(task_id, may_end=True), place.by)


def _why_not_cancelled(status: TaskStatus) -> str:
    return f"it has ended: {status.value}" if status.is_terminal else "its cancellation was requested before"


def _item(task: ListedTask, outcome: TaskRecord | str | BaseException | None) -> BulkItem:
    task_id = public_id(task.task_id)
    if isinstance(outcome, BaseException):
        if not isinstance(outcome, LlamaDeployError) or outcome.retriable:
            raise outcome
        return BulkItem(task_id=task_id, reason=str(outcome))
    if isinstance(outcome, TaskRecord):
        return BulkItem(task_id=task_id, new_task_id=public_id(outcome.task_id))
    return BulkItem(task_id=task_id, reason=outcome)


def _foreseen(request: BulkRequest, task: ListedTask, retried: Sequence[str] | None) -> BulkItem:
    """Return what would become of a task, as far as its row tells."""
    reason: str | None = None
    if request.action == "cancel":
        reason = _why_not_cancelled(task.status) if task.status.is_terminal else None
    elif not task.status.is_terminal:
        reason = f"it has not ended: {task.status.value}"
    elif retried:
        reason = f"it was retried before, as task {public_id(retried[0])}"
    elif request.origin != FROM_START:
        if task.status is TaskStatus.SUCCEEDED:
            reason = 'it has succeeded, and can only be retried from "start"'
        elif task.durability in (Durability.VOLATILE, Durability.TASK):
            reason = f'its durability is {task.durability.value!r}, so it can only be retried from "start"'
    return BulkItem(task_id=public_id(task.task_id), reason=reason)


def _read_with_retries(
    tx: StoreTransaction, request: BulkRequest, place: _Place
) -> tuple[list[ListedTask], ListKey | str | None, dict[str, list[str]]]:
    page = _read(tx, request, place, limit=_DRY_PAGE)
    ids = [task.task_id for task in page.tasks] if request.action == "retry" else []
    return page.tasks, page.last, tx.tasks.retries_of(ids)


def _read(tx: StoreTransaction, request: BulkRequest, place: _Place, *, limit: int) -> _Page:
    asked = request.filter
    statuses = frozenset(asked.status) or (_OPEN if request.action == "cancel" else _FAILED)
    before = place.began_at
    if asked.created_before is not None:
        before = min(before, asked.created_before)
    conditions = replace(conditions_of(asked, place.owner), statuses=statuses, created_before=before)
    if asked.q is not None:
        after = place.after if isinstance(place.after, str) else ""
        by_id = tx.task_lists.page_by_id(conditions, after=after, limit=limit)
        return _Page(by_id.tasks, by_id.last)
    key = place.after if isinstance(place.after, ListKey) else None
    newest_first = asked.ordered_by != "oldest"
    rows = tx.task_lists.page(conditions, newest_first=newest_first, after=key, limit=limit)
    return _Page(rows.tasks, rows.last)


def _retry_id(bulk_id: str, task_id: str) -> str:
    """Return the id of the task that retries another one in a bulk change."""
    text = f"{len(bulk_id)}:{bulk_id}:{task_id}".encode("utf-8", "surrogatepass")
    return internal_key(tenant_of(task_id), f"retry-{hashlib.sha256(text).hexdigest()[: 2 * _ID_BYTES]}")


def _identity(request: BulkRequest) -> dict[str, Any]:
    return {"list": f"bulk {request.action} {request.origin}", **request.filter.identity()}


def _cursor(request: BulkRequest, place: _Place, last: ListKey | str) -> str:
    began = to_microseconds(place.began_at)
    if isinstance(last, str):
        return encode_cursor([place.bulk_id, began, public_id(last)], of=_identity(request))
    created = to_microseconds(last.created_at)
    return encode_cursor([place.bulk_id, began, created, last.position], of=_identity(request))


def _key(values: Sequence[int | str], owner: Owner) -> ListKey | str:
    match values:
        case [str(task_id)]:
            return owner.key_of(task_id)
        case [int(created), int(position)]:
            return ListKey(time_in_cursor(created), position)
    raise InvalidRequestError("the cursor is malformed")
