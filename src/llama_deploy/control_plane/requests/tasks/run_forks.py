"""A run as it was when one of its steps began, read from the store for a fork."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from llama_deploy.control_plane.decisions.forks import (
    StoredRun,
    first_attempt_of_run,
    first_reached,
    forked,
)
from llama_deploy.control_plane.decisions.retries import Fork, check_ended, check_kept, not_reached
from llama_deploy.control_plane.requests.tasks.task_lists import ended_steps
from llama_deploy.control_plane.storage.past_rows import load_past
from llama_deploy.control_plane.storage.removed_ids import find_task
from llama_deploy.control_plane.storage.run_rows import check_format
from llama_deploy.control_plane.storage.step_rows import load_steps
from llama_deploy.errors import InvalidRequestError, StepNotFoundError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.keys import public_id
from llama_deploy.types.retries import FROM_LAST_STEP, FROM_START
from llama_deploy.types.run_past import PastWrite
from llama_deploy.types.run_points import RunPoint
from llama_deploy.types.step_history import MAX_STEPS_OF_ROW, read_step_id
from llama_deploy.types.task_lists import EndedStep

_MAX_ROWS: Final = 1000
"""In how many rows the step is looked for."""
_MAX_LATER: Final = 1000
"""Among how many later steps one is looked for that can be named."""


def read_fork(tx: StoreTransaction, task_id: str, step_id: str, *, is_routed: bool) -> Fork:
    """Return a task's run as it was when a step began. An ended task does not change any more.

    Args:
        tx: The transaction.
        task_id: The task.
        step_id: The step before which the fork goes on.
        is_routed: Whether an orchestrator chooses the services of new tasks.

    Raises:
        TaskNotFoundError: The task does not exist.
        InvalidRequestError: The id is malformed.
        StepNotFoundError: No step that has ended has this id.
        RetryRefusedError: The task has not ended, or what is kept of its run does not reach back so far.
        UnavailableError: A newer release has stored the run.
    """
    task = find_task(tx, task_id)
    check_ended(task)
    step, later = _steps(tx, task, step_id)
    point = RunPoint.read(step.point)
    is_beginning = point is not None and point.is_beginning
    check_kept(task, is_routed=is_routed, from_beginning=is_beginning)
    begun = first_attempt_of_run(task)
    later = islice((each for each in later if each.attempt >= begun), _MAX_LATER)
    if is_beginning and step.attempt >= begun:
        return Fork(step, None)
    past = load_past(tx, task.task_id)
    stored = _stored(tx, task, past.writes)
    if point is None or step.attempt < begun:
        raise not_reached(task, step, first_reached(stored, later))
    run = None if stored is None else forked(stored, point)
    if run is None:
        unreadable = [number + 1 for number in past.unreadable if number >= point.writes_before]
        raise not_reached(task, step, first_reached(stored, later), unreadable=unreadable)
    return Fork(step, run)


def _steps(tx: StoreTransaction, task: TaskRecord, step_id: str) -> tuple[EndedStep, Iterator[EndedStep]]:
    """Return a step, and those after it."""
    place = read_step_id(step_id)
    if place is None:
        raise InvalidRequestError(
            f"a retry begins from {FROM_START!r}, {FROM_LAST_STEP!r}, or the step_id of one of its steps,"
            f" such as 1.2, and not from {step_id!r}; GET /tasks/{public_id(task.task_id)}/steps has the ids"
        )
    attempt, number = place
    after = (attempt, max(-1, number - 2 - MAX_STEPS_OF_ROW))
    rows = load_steps(tx, task, after=after, limit=_MAX_ROWS)
    steps = (step for row in rows for step in ended_steps(row))
    for step in steps:
        if step.step_id == step_id:
            return step, steps
    raise StepNotFoundError(
        f"task {public_id(task.task_id)} has no step {step_id} that has ended; GET"
        f" /tasks/{public_id(task.task_id)}/steps shows its steps",
        task_id=public_id(task.task_id),
        step_id=step_id,
    )


def _stored(tx: StoreTransaction, task: TaskRecord, past: Sequence[PastWrite]) -> StoredRun | None:
    head = tx.runs.load([task.task_id]).get(task.task_id)
    if head is None or not task.has_run:
        return None
    check_format(task, head.format)
    first = task.journal_length - tx.runs.count_entries(task.task_id)
    return StoredRun.of(head, first=first, length=task.journal_length, past=past)
