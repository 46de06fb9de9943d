"""What the owner of an attempt reports: events, writes of the journal of its run, and the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.decisions import hops
from llama_deploy.control_plane.decisions.attempt_history import PARKED, with_past_attempt
from llama_deploy.control_plane.decisions.routing import Routing
from llama_deploy.control_plane.decisions.takeovers import after_write, start_of_run
from llama_deploy.control_plane.decisions.transitions import (
    NO_OWNER,
    Transition,
    cancelled_result,
    failure_of,
    finish,
    moved,
    next_attempt,
)
from llama_deploy.errors import EventsMissingError, FencedOutError, JournalConflictError, LlamaDeployError
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
    JournalWrite,
    Parking,
)
from llama_deploy.types.keys import public_id
from llama_deploy.types.task_lists import MAX_PROGRESS_CHARACTERS

_LONGEST_SLEEP: Final = timedelta(days=3650)
"""A run with a later timer is woken at this time too, and parks again."""
HARMLESS_AFTER: Final = timedelta(minutes=1)
"""When an attempt of this age finishes a step, the deaths before it are forgiven."""


def take_events(task: TaskRecord, sent: AttemptEvents) -> Transition:
    """The owner of the attempt has streamed events. Events that are stored already are skipped.

    Raises:
        FencedOutError: The sender does not own the attempt.
        EventsMissingError: Earlier events of the attempt have not arrived.
    """
    events = _new_events(task, sent)
    return Transition(_grown(task, sent, len(events)), events)


def end(
    task: TaskRecord, outcome: AttemptOutcome, *, at: datetime, keeps_journal: bool = False
) -> Transition:
    """The owner of the attempt has finished it: `running` → a terminal status.

    If the task has a route and nobody wants its end, only a hop has ended: `running` → `pending`.

    Args:
        task: The task.
        outcome: What the owner reports.
        at: The present time.
        keeps_journal: See `finish`.

    Raises:
        FencedOutError: The sender does not own the attempt.
        EventsMissingError: Earlier events of the attempt have not arrived.
    """
    events = _new_events(task, outcome)
    grown = _grown(task, outcome, len(events))
    if task.routing is not None and outcome.status is not TaskStatus.CANCELLED:
        if task.cancel_requested:
            return finish(grown, cancelled_result(task), at=at, events=events, steps=outcome.steps)
        return hops.end_hop(grown, outcome, at=at, events=events)
    return finish(
        grown,
        outcome.task_result,
        at=at,
        events=events,
        stop_event=outcome.stop_event,
        steps=outcome.steps,
        keeps_journal=keeps_journal,
    )


def is_repeated(task: TaskRecord, outcome: AttemptOutcome) -> bool:
    """Whether the task, or its hop, has ended with this very outcome: a queue may deliver it repeatedly."""
    if hops.is_unrouted(task):
        ended = Routing.of(task).outcome
        return ended is not None and ended.attempt == outcome.attempt
    if not task.status.is_terminal or task.result is None or task.attempt != outcome.attempt:
        return False
    stored = TaskResult.model_validate_json(text_of(task.result))
    return (stored.status, stored.result, stored.error) == (outcome.status, outcome.text, outcome.error)


def failed(outcome: AttemptOutcome, error: LlamaDeployError) -> AttemptOutcome:
    """Return the outcome of an attempt whose result cannot be stored."""
    failure = failure_of(type(error), str(error))
    empty = dict.fromkeys(["text_parts", "value", "value_type", "terminal_event", "event_value"])
    changes = {"status": TaskStatus.FAILED, "result": str(error), "error": failure}
    return outcome.model_copy(update={**empty, **changes})


def journal(task: TaskRecord, write: JournalWrite, *, at: datetime) -> Transition:
    """The owner of the attempt writes to the run's journal, and may park the run: `running` → `waiting`.

    A write may also say that the run cannot be stored: it becomes volatile, and starts from its beginning in
    the next attempt. A write that is repeated because its answer was lost is not stored again. A run that is
    to be parked gets its next attempt at once if an event has arrived that it has not seen, and ends if its
    cancellation was requested. Parking, and the end of a step in an attempt older than `HARMLESS_AFTER`, show
    that the task does not kill its processes: earlier deaths are forgiven, and it is no suspect any more.

    Raises:
        FencedOutError: The sender does not own the attempt.
        EventsMissingError: Earlier events of the attempt have not arrived.
        JournalConflictError: The write does not follow the stored entries.
    """
    events = _new_events(task, write)
    task = _grown(task, write, len(events))
    if write.volatile is not None:
        return _make_volatile(task, write.volatile, events)
    if write.seq < task.journal_length and write.parking is None:
        return Transition(task, events)
    if write.seq != task.journal_length:
        raise JournalConflictError(
            f"the journal of task {public_id(task.task_id)} has {task.journal_length} entries, but the write"
            f" of attempt {write.attempt} follows entry {write.seq}; a new attempt has to read it again",
            task_id=task.task_id,
            expected=task.journal_length,
        )
    task = task._replace(
        has_run=True,
        journal_length=task.journal_length + (write.entry is not None),
        running_seconds=write.running_seconds,
        pinned_to=None,  # from now on, what the journal needs decides
    )
    task = after_write(task, write)
    if _is_harmless(task, write, at=at):
        task = task._replace(losses=0, deaths=0)
    if write.parking is None:
        return Transition(task, events, journal=write)
    if task.cancel_requested:
        return replace(finish(task, cancelled_result(task), at=at, events=events), journal=write)
    return replace(_park(task, write.parking, at=at), events=events, journal=write)


def _is_harmless(task: TaskRecord, write: JournalWrite, *, at: datetime) -> bool:
    # A step may be repeated quickly while another one soon kills the process.
    lived = task.claimed_at is not None and at - task.claimed_at >= HARMLESS_AFTER
    return write.parking is not None or (write.step_ended and lived)


def _make_volatile(task: TaskRecord, reason: str, events: Sequence[EventPayload]) -> Transition:
    """Nothing of the run is kept from now on: its next attempt starts from the beginning."""
    if task.durability is Durability.VOLATILE:
        return Transition(task, events)
    task = task._replace(
        has_run=False,
        journal_length=0,
        running_seconds=0.0,
        repeats_from=start_of_run(task),
        unfinished=None,
        durability=Durability.VOLATILE,
        volatile_reason=reason,
    )
    return Transition(task, events, forget_run=True, restore_inbox=True)


def _park(task: TaskRecord, parking: Parking, *, at: datetime) -> Transition:
    if task.inbox_length > parking.inbox_seq:
        return next_attempt(task, at=at)
    seconds = parking.wake_in
    sleep = None if seconds is None else timedelta(seconds=min(seconds, _LONGEST_SLEEP.total_seconds()))
    wake_at = None if sleep is None else at + sleep
    since = task.waiting_since or at
    task = with_past_attempt(task, at=at, end=PARKED)
    return Transition(
        moved(task, TaskStatus.WAITING, at=at, **NO_OWNER, wake_at=wake_at, waiting_since=since)
    )


def check_owner(task: TaskRecord, *, attempt: int, token: str) -> None:
    """Raise `FencedOutError` unless the token is that of the attempt that is running."""
    if task.status is not TaskStatus.RUNNING or task.attempt != attempt or task.token != token:
        raise FencedOutError(
            f"the sender does not own attempt {attempt} of task {public_id(task.task_id)}:"
            f" the task is {task.status.value} in attempt {task.attempt}",
            task_id=task.task_id,
            attempt=attempt,
        )


def _new_events(task: TaskRecord, sent: AttemptEvents) -> list[EventPayload]:
    check_owner(task, attempt=sent.attempt, token=sent.token)
    if sent.first > task.attempt_events:
        raise EventsMissingError(
            f"events from {sent.first} on of attempt {sent.attempt} of task {public_id(task.task_id)}"
            f" arrived, but {task.attempt_events} is the next",
            task_id=task.task_id,
            expected=task.attempt_events,
        )
    return sent.events[task.attempt_events - sent.first :]


def _grown(task: TaskRecord, sent: AttemptEvents, count: int) -> TaskRecord:
    """Return a task with so many new events, and what its run says of its progress."""
    progress = task.progress if sent.progress is None else sent.progress[:MAX_PROGRESS_CHARACTERS]
    return task._replace(
        stream_length=task.stream_length + count,
        attempt_events=task.attempt_events + count,
        progress=progress,
    )
