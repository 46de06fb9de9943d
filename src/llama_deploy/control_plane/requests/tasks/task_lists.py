"""Requests of clients that look at tasks: lists, counts, and all that is known of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter

from llama_deploy.control_plane.decisions.attempt_history import attempts_of
from llama_deploy.control_plane.decisions.cursors import decode_cursor, encode_cursor, time_in_cursor
from llama_deploy.control_plane.decisions.destinations import needs_fitting_version, why_stranded
from llama_deploy.control_plane.requests.tasks.inbox_requests import question_view
from llama_deploy.control_plane.requests.tasks.task_requests import task_view
from llama_deploy.control_plane.storage.fleets import load_demand, load_fleets
from llama_deploy.control_plane.storage.present_steps import present_steps
from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.control_plane.storage.step_rows import load_steps
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.list_repositories import ListedTask, ListKey, TaskConditions
from llama_deploy.state_stores.records import StepsRecord, TaskRecord
from llama_deploy.types import TaskResult, TaskStatus
from llama_deploy.types.epoch import to_microseconds
from llama_deploy.types.keys import check_tenant, public_id
from llama_deploy.types.owners import Owner
from llama_deploy.types.questions import Question
from llama_deploy.types.step_history import decode_steps
from llama_deploy.types.task_lists import (
    CountBy,
    EndedStep,
    PresentStep,
    StepPage,
    TaskCount,
    TaskCounts,
    TaskDetails,
    TaskFilter,
    TaskPage,
)

MAX_QUESTIONS: Final = 20
"""How many of its open questions are shown with a task."""
MAX_CHILDREN: Final = 100
"""How many children, and how many writes of steps, the details of a task have."""
_TAGS: Final = TypeAdapter(list[str])


@dataclass(frozen=True, slots=True)
class TaskLists:
    """Lists and counts tasks, and shows what is known of one."""

    store: StateStore
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""

    async def page(
        self, wanted: TaskFilter, *, owner: Owner, limit: int, cursor: str | None = None
    ) -> TaskPage:
        """Return a page of tasks.

        Args:
            wanted: Which tasks, and in which order; with keys in place of ids.
            owner: To whom they belong.
            limit: The most tasks of a page.
            cursor: `next_cursor` of the page before. None: the first page.

        Raises:
            InvalidCursorError: The cursor is malformed, or that of another filter or order.
        """
        of = {"list": "tasks", **wanted.identity()}
        if wanted.ordered_by == "id":
            return await self._page_by_id(wanted, owner, of, limit=limit, cursor=cursor)
        after = None if cursor is None else _decoded(cursor, of)
        conditions, newest_first = conditions_of(wanted, owner), wanted.ordered_by == "newest"
        page = await self.store.read(
            lambda tx: tx.task_lists.page(conditions, newest_first=newest_first, after=after, limit=limit)
        )
        last = None if page.last is None else _encoded(page.last, of)
        return TaskPage(items=[_summary(task) for task in page.tasks], next_cursor=last)

    async def _page_by_id(
        self, wanted: TaskFilter, owner: Owner, of: Mapping[str, object], *, limit: int, cursor: str | None
    ) -> TaskPage:
        after = "" if cursor is None else owner.key_of(str(decode_cursor(cursor, of=of, kinds=[str])[0]))
        conditions = conditions_of(wanted, owner)
        page = await self.store.read(
            lambda tx: tx.task_lists.page_by_id(conditions, after=after, limit=limit)
        )
        last = None if page.last is None else encode_cursor([public_id(page.last)], of=of)
        return TaskPage(items=[_summary(task) for task in page.tasks], next_cursor=last)

    async def count(self, by: Collection[CountBy], *, owner: Owner) -> TaskCounts:
        """Return how many tasks an owner has, for each status, each service or each pair of them."""
        stored = await self.store.read(lambda tx: tx.task_lists.counts(owner))
        totals: Counter[tuple[str | None, TaskStatus | None]] = Counter()
        for (service_name, status), count in stored.items():
            of = (service_name if "service" in by else None, status if "status" in by else None)
            totals[of] += count
        if not by and not totals:
            totals[None, None] = 0
        places = {status: place for place, status in enumerate(TaskStatus)}

        def order(of: tuple[str | None, TaskStatus | None]) -> tuple[str, int]:
            return of[0] or "", -1 if of[1] is None else places[of[1]]

        return TaskCounts(
            items=[
                TaskCount(service=service, status=status, count=totals[service, status])
                for service, status in sorted(totals, key=order)
            ]
        )

    async def details(self, task_id: str) -> TaskDetails:
        """Return all that is known of a task.

        Raises:
            TaskNotFoundError: It does not exist.
        """
        now = self.clock()
        return await self.store.read(lambda tx: task_details(tx, task_id, now=now))

    async def steps(self, task_id: str, *, limit: int, cursor: str | None = None) -> StepPage:
        """Return a page of the steps of a task that have ended, in the order in which that was stored.

        Args:
            task_id: The task.
            limit: The most steps of a page; the last write that is shown may add some.
            cursor: `next_cursor` of the page before. None: the first page.

        Raises:
            TaskNotFoundError: It does not exist.
            InvalidCursorError: The cursor is malformed, or that of another task.
        """
        of = {"list": "steps", "task": public_id(task_id)}
        after = (0, -1)
        if cursor is not None:
            attempt, first = decode_cursor(cursor, of=of, kinds=[int, int])
            after = (int(attempt), int(first))

        def read(tx: StoreTransaction) -> list[StepsRecord]:
            return load_steps(tx, find_task(tx, task_id), after=after, limit=limit + 1)

        rows = await self.store.read(read)
        items: list[EndedStep] = []
        for row in rows:
            if len(items) >= limit:
                break
            items += ended_steps(row)
            after = (row.attempt, row.first)
        is_last = not rows or after == (rows[-1].attempt, rows[-1].first)
        return StepPage(items=items, next_cursor=None if is_last else encode_cursor(after, of=of))


def conditions_of(wanted: TaskFilter, owner: Owner) -> TaskConditions:
    """Return which tasks of an owner a filter lists, which has keys in place of ids.

    Raises:
        ForeignKeyError: One of them is not a key of the owner's tenant.
    """
    check_tenant(owner.tenant, wanted.session, wanted.parent, wanted.q)
    return TaskConditions(
        statuses=frozenset(wanted.status),
        service_name=wanted.service,
        session_id=wanted.session,
        parent_task_id=wanted.parent,
        tags=list(dict.fromkeys(wanted.tag)),
        created_from=wanted.created_after,
        created_before=wanted.created_before,
        prefix=wanted.q,
        owner=owner,
    )


def _encoded(key: ListKey, of: Mapping[str, object]) -> str:
    return encode_cursor([to_microseconds(key.created_at), key.position], of=of)


def _decoded(cursor: str, of: Mapping[str, object]) -> ListKey:
    at, position = decode_cursor(cursor, of=of, kinds=[int, int])
    return ListKey(time_in_cursor(at), int(position))


def _summary(task: ListedTask) -> TaskDetails:
    """Return a task as a list shows it: without what is not set, or may be large."""
    failed = None if task.failed_result is None else TaskResult.model_validate_json(task.failed_result)
    return TaskDetails(
        task_id=public_id(task.task_id),
        session_id=public_id(task.session_id),
        service_name=task.target,
        status=task.status,
        attempt=task.attempt,
        instance_id=task.instance_id,
        created_at=task.created_at,
        finished_at=task.finished_at,
        durability=task.durability,
        volatile_reason=task.volatile_reason,
        version=task.version,
        since=task.status_changed_at,
        started_at=task.started_at,
        waiting_since=task.waiting_since,
        waits_for=_waits_for(task),
        progress=task.progress,
        tags=_tags(task.tags),
        parent_task_id=task.parent_task_id and public_id(task.parent_task_id),
        retry_of=task.retry_of and public_id(task.retry_of),
        error=failed and failed.error,
    )


def _tags(text: str) -> list[str]:
    return [] if text == "[]" else _TAGS.validate_json(text)


def _is_served(tx: StoreTransaction, task: TaskRecord, *, now: datetime) -> bool:
    """Whether an instance lives that may take a queued task."""
    if task.status is not TaskStatus.QUEUED:
        return True
    _, alive = tx.instances.counts([task.target], now=now).get(task.target, (0, 0))
    return alive > 0


def _waits_for(task: ListedTask | TaskRecord, *, is_idle: bool = False) -> str | None:
    match task.shown_status if isinstance(task, TaskRecord) else task.status:
        case TaskStatus.PENDING if task.redispatch_at is not None:
            return "the orchestrator, which chooses its next service"
        case TaskStatus.PENDING:
            return f"its turn: earlier tasks of session {public_id(task.session_id)}"
        case TaskStatus.QUEUED:
            return f"an instance of service {task.target!r}{', of which none is alive' * is_idle}"
        case TaskStatus.WAITING if task.wake_at is not None:
            return f"an event, or its timer at {task.wake_at:%Y-%m-%dT%H:%M:%SZ}"
        case TaskStatus.WAITING:
            return "an event"
        case _:
            return None


def task_details(tx: StoreTransaction, task_id: str, *, now: datetime) -> TaskDetails:
    """Return all that is known of a task; see `TaskLists.details`."""
    task = find_task(tx, task_id)
    view, text = task_view(task), text_of(task.input)
    stranded = _stranded(tx, task, now=now)
    children = tx.task_lists.page(
        TaskConditions(parent_task_id=task_id), newest_first=False, limit=MAX_CHILDREN
    )
    steps = [step for row in load_steps(tx, task, limit=MAX_CHILDREN) for step in ended_steps(row)]
    facts: dict[str, Any] = {name: getattr(view, name) for name in type(view).model_fields}
    return TaskDetails.model_construct(
        **facts
        | {
            "stranded": stranded,
            "since": task.status_changed_at,
            "started_at": task.started_at,
            "waiting_since": task.waiting_since,
            "waits_for": stranded or _waits_for(task, is_idle=not _is_served(tx, task, now=now)),
            "progress": task.progress,
            "tags": _tags(task.tags),
            "parent_task_id": task.parent_task_id and public_id(task.parent_task_id),
            "retry_of": task.retry_of and public_id(task.retry_of),
            "retry_from": task.retry_from,
            "imported_at": task.imported_at,
            "error": view.result and view.result.error,
            "arguments": json.loads(text) if text.startswith("{") else None,
            "present_steps": _present_steps(tx, task),
            "steps": steps,
            "attempts": attempts_of(task),
            "questions": _questions(tx, task),
            "children": [public_id(child.task_id) for child in children.tasks],
        }
    )


def _questions(tx: StoreTransaction, task: TaskRecord) -> list[Question]:
    if task.wait_reports is None:
        return []
    return list(map(question_view, tx.questions.of_task(task.task_id, limit=MAX_QUESTIONS)))


def _stranded(tx: StoreTransaction, task: TaskRecord, *, now: datetime) -> str | None:
    """Return why no living instance can run a task. None: one can, or it does not wait for one."""
    if task.status not in (TaskStatus.QUEUED, TaskStatus.WAITING) or not needs_fitting_version(task):
        return None
    return why_stranded(load_demand(tx, task), load_fleets(tx, [task.target], now=now)[task.target])


def ended_steps(row: StepsRecord) -> Iterator[EndedStep]:
    """Yield the steps of a row."""
    return decode_steps(row.steps, attempt=row.attempt, first=row.first)


def _present_steps(tx: StoreTransaction, task: TaskRecord) -> Sequence[PresentStep] | None:
    """Return the steps that a task is running, if its instance says so."""
    if task.status is not TaskStatus.RUNNING or task.instance_id is None:
        return None
    for instance in tx.instances.load(instance_ids=[task.instance_id]):
        return present_steps(instance, task.task_id)
    return None
