"""Which instances have had a task, from when to when, and how each attempt has ended. No I/O, no clock.

The present or last attempt stands in the fields of the task. Those before are kept in a list, which grows
only when an attempt ends and the task does not.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from llama_deploy.control_plane.decisions.takeovers import takeovers_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskStatus
from llama_deploy.types.task_lists import TaskAttempt

MAX_PAST_ATTEMPTS: Final = 50
"""How many past attempts are kept of a task, the last ones."""
PARKED: Final = "parked"
"""The end of an attempt whose run only waited: it does not occupy an instance until something wakes it."""
_LIST: Final = TypeAdapter(list[TaskAttempt])


def with_past_attempt(task: TaskRecord, *, at: datetime, end: str | None = None) -> TaskRecord:
    """Return a task that notes the end of the attempt under way, if an instance has it.

    Args:
        task: The task.
        at: The present time.
        end: How it ends. None: why the next one takes over; parked, if it does not take over anything.
    """
    if task.status is not TaskStatus.RUNNING:
        return task
    if end is None:
        last = takeovers_of(task)[-1:]
        end = last[0].reason if last and last[0].attempt == task.attempt + 1 else PARKED
    ended = _attempt(task, ended_at=at, end=end)
    kept = [*_past_attempts(task), ended][-MAX_PAST_ATTEMPTS:]
    return task._replace(past_attempts=_LIST.dump_json(kept, exclude_none=True).decode())


def attempts_of(task: TaskRecord) -> list[TaskAttempt]:
    """Return the attempts of a task that an instance has had, oldest first, with the present one."""
    past = _past_attempts(task)
    if task.claimed_at is None or task.instance_id is None:
        return past
    end = task.status.value if task.status.is_terminal else None
    return [*past, _attempt(task, ended_at=task.finished_at, end=end)]


def _past_attempts(task: TaskRecord) -> list[TaskAttempt]:
    return [] if task.past_attempts is None else _LIST.validate_json(task.past_attempts)


def _attempt(task: TaskRecord, *, ended_at: datetime | None, end: str | None) -> TaskAttempt:
    return TaskAttempt(
        attempt=task.attempt,
        instance_id=task.instance_id,
        began_at=task.claimed_at,
        ended_at=ended_at,
        end=end,
    )
