"""Which events may come again when a new attempt takes over from one that did not end. No I/O, no clock.

Steps whose end is not stored run again. `TaskRecord.repeats_from` and `unfinished` follow which events are
of such steps. A run that was parked and is woken repeats nothing, and the next service of a route takes over
nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import TypeAdapter

from llama_deploy.control_plane.decisions.routing import Routing
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import NewAttempt
from llama_deploy.types.instance_protocol import JournalWrite, UnfinishedSteps

MAX_TAKEOVERS: Final = 50
"""How many takeovers are kept of a task, the last ones."""
_LIST: Final = TypeAdapter(list[NewAttempt])


class TakeoverReason(StrEnum):
    """Why an attempt did not end. Clients see it in `NewAttempt.reason`."""

    LOST = "lost"
    """Its instance died or went silent."""
    HANDED_BACK = "handed_back"
    """Its instance gave it back, for example because it stops."""
    REPORTS_LOST = "reports_lost"
    """The queue has lost what it sent."""
    DEREGISTERED = "deregistered"
    """Its service was removed."""
    MOVED = "moved"
    """Somebody has moved the task to a version that begins again."""


def takeovers_of(task: TaskRecord) -> list[NewAttempt]:
    """Return the attempts that have taken over from lost ones, in order."""
    return [] if task.takeovers is None else _LIST.validate_json(task.takeovers)


def take_over(task: TaskRecord, reason: TakeoverReason) -> TaskRecord:
    """Note that the next attempt takes over from the one under way."""
    end = task.stream_length
    begin = end - task.attempt_events if task.repeats_from is None else task.repeats_from
    steps = None if task.unfinished is None else UnfinishedSteps.model_validate_json(task.unfinished)
    new = NewAttempt(
        attempt=task.attempt + 1,
        position=end,
        repeats_from=min(begin, end),
        unfinished=None if steps is None else steps.runs,
        begun=0 if steps is None else steps.begun,
        reason=reason,
    )
    kept = [*takeovers_of(task), new][-MAX_TAKEOVERS:]
    return task._replace(takeovers=_LIST.dump_json(kept).decode())


def after_write(task: TaskRecord, write: JournalWrite) -> TaskRecord:
    """Return a task with what comes again after a write to its journal."""
    if write.unfinished is not None:
        begin = task.stream_length - task.attempt_events + write.unfinished.first_event
        return task._replace(repeats_from=begin, unfinished=write.unfinished.model_dump_json())
    return task._replace(repeats_from=task.stream_length) if write.step_ended else task


def start_of_run(task: TaskRecord) -> int:
    """Return where the events of a task's run begin: all of them come again if it cannot be stored."""
    return 0 if task.routing is None else Routing.of(task).stream_start
