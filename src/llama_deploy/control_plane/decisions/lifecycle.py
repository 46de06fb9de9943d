"""The life of a task, as pure functions: (task, event) → (task, effects). No I/O, no clock.

```
            admit                    claim                 end
 (accepted) ─────▶ pending ─turn─▶ queued ─────▶ running ─────▶ succeeded │ failed │ cancelled │ timed_out
              └──────────────────▶  ▲  │            │
                                    │  ├─cancel─▶ cancelled
                                    │  └─refuse─▶ failed
                                    ├──lost, handed or taken back──┤
                                    └──wake── waiting ◀──park──────┘
                                                 └─cancel─▶ cancelled
```

A task with a route does not become `queued` by itself: it stays `pending` until an orchestrator outside has
named the next service, or has said that there is none. Each of its hops ends in `pending` again; see `hops`.

An event that does not fit raises an error and changes nothing: `FencedOutError` for an attempt that is not
the current one, `TaskFinishedError` for a request to a task that has ended. A run's journal belongs to its
task: it is kept from attempt to attempt and deleted when the task ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions import hops
from llama_deploy.control_plane.decisions.deaths import Blame, is_suspect
from llama_deploy.control_plane.decisions.routing import Routing
from llama_deploy.control_plane.decisions.takeovers import (
    TakeoverReason,
    after_write,
    start_of_run,
    take_over,
)
from llama_deploy.control_plane.decisions.transitions import (
    NO_OWNER,
    Transition,
    cancelled_result,
    failed_result,
    failure_of,
    finish,
    first_attempt,
    moved,
    next_attempt,
)
from llama_deploy.errors import (
    AttemptsExhaustedError,
    ConflictError,
    EventsMissingError,
    FencedOutError,
    JournalConflictError,
    LlamaDeployError,
    SessionBusyError,
    TaskFinishedError,
)
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, SessionPolicy, TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    EventPayload,
    JournalWrite,
    Parking,
)

_LONGEST_SLEEP: Final = timedelta(days=3650)
"""A run with a later timer is woken at this time too, and parks again."""
_CANCEL_GRACE: Final = timedelta(seconds=2)
"""How long an instance may take to cancel an attempt before it is not asked any more."""
_TIMEOUT_TYPE: Final = "workflows.errors.WorkflowTimeoutError"
"""As instances report it, of the workflow library."""
HARMLESS_AFTER: Final = timedelta(minutes=1)
"""When an attempt of this age finishes a step, the deaths before it are forgiven."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What becomes of a new task and of the open tasks of its session."""

    accepted: Transition
    cancel: Sequence[TaskRecord] = ()
    """Open tasks to cancel."""


def admit(task: TaskRecord, *, open_tasks: Sequence[TaskRecord], policy: SessionPolicy) -> Admission:
    """Decide on a new task, whose status is `pending`, by the policy of its session.

    Raises:
        SessionBusyError: The policy is `reject` and the session has an open task.
    """
    if not open_tasks or policy is SessionPolicy.PARALLEL:
        return Admission(take_turn(task, at=task.created_at))
    if policy is SessionPolicy.REJECT:
        raise SessionBusyError(
            f"session {task.session_id} has the open task {open_tasks[0].task_id}, and its policy rejects"
            " others; wait for its end, or use another session",
            session_id=task.session_id,
        )
    return Admission(Transition(task), cancel=open_tasks if policy is SessionPolicy.INTERRUPT else ())


def take_turn(task: TaskRecord, *, at: datetime) -> Transition:
    """It is the task's turn in its session: `pending` → `queued`, or the orchestrator is asked first."""
    if task.routing is not None:
        return hops.ask_for_route(task, at=at)
    return first_attempt(task, at=at)


def claim(
    task: TaskRecord,
    *,
    instance_id: str,
    attempt: int,
    token: str,
    at: datetime,
    durability: Durability | None = None,
    version: str | None = None,
) -> Transition:
    """An instance asks to own an attempt: `queued` → `running`.

    Asking again for an attempt that the instance owns is granted again with the same token: its answer
    may have been lost.

    Raises:
        FencedOutError: Another attempt is due, or another instance owns this one, or the task has ended.
    """
    if task.status is TaskStatus.RUNNING and (task.attempt, task.instance_id) == (attempt, instance_id):
        return Transition(task._replace(claimed_at=at))
    if task.status is not TaskStatus.QUEUED or task.attempt != attempt:
        raise FencedOutError(
            f"attempt {attempt} of task {task.task_id} cannot be claimed: the task is {task.status.value}"
            f" in attempt {task.attempt}",
            task_id=task.task_id,
            attempt=attempt,
        )
    claimed = moved(
        task,
        TaskStatus.RUNNING,
        at=at,
        instance_id=instance_id,
        token=token,
        claimed_at=at,
        attempt_events=0,
        repeats_from=task.stream_length,
        unfinished=None,
        durability=task.durability if task.durability is Durability.VOLATILE else durability,
        version=version,
    )
    return Transition(claimed)


def take_events(task: TaskRecord, sent: AttemptEvents) -> Transition:
    """The owner of the attempt has streamed events. Events that are stored already are skipped.

    Raises:
        FencedOutError: The sender does not own the attempt.
        EventsMissingError: Earlier events of the attempt have not arrived.
    """
    events = _new_events(task, sent)
    return Transition(_grown(task, len(events)), events)


def end(task: TaskRecord, outcome: AttemptOutcome, *, at: datetime) -> Transition:
    """The owner of the attempt has finished it: `running` → a terminal status.

    If the task has a route and nobody wants its end, only a hop has ended: `running` → `pending`.

    Raises:
        FencedOutError: The sender does not own the attempt.
        EventsMissingError: Earlier events of the attempt have not arrived.
    """
    events = _new_events(task, outcome)
    grown = _grown(task, len(events))
    if task.routing is not None and outcome.status is not TaskStatus.CANCELLED:
        if task.cancel_requested:
            return finish(grown, cancelled_result(task), at=at, events=events)
        return hops.end_hop(grown, outcome, at=at, events=events)
    return finish(grown, outcome.task_result, at=at, events=events, stop_event=outcome.stop_event)


def is_repeated(task: TaskRecord, outcome: AttemptOutcome) -> bool:
    """Whether the task, or its hop, has ended with this very outcome: a queue may deliver it repeatedly."""
    if hops.is_unrouted(task):
        ended = Routing.of(task).outcome
        return ended is not None and ended.attempt == outcome.attempt
    if not task.status.is_terminal or task.result is None or task.attempt != outcome.attempt:
        return False
    stored = TaskResult.model_validate_json(task.result)
    return (stored.status, stored.result, stored.error) == (outcome.status, outcome.text, outcome.error)


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
    task = _grown(task, len(events))
    if write.volatile is not None:
        return _make_volatile(task, write.volatile, events)
    if write.seq < task.journal_length and write.parking is None:
        return Transition(task, events)
    if write.seq != task.journal_length:
        raise JournalConflictError(
            f"the journal of task {task.task_id} has {task.journal_length} entries, but the write of attempt"
            f" {write.attempt} follows entry {write.seq}; a new attempt has to read it again",
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
        return finish(task, cancelled_result(task), at=at, events=events)
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


def wake(task: TaskRecord, *, at: datetime) -> Transition:
    """An event or a timer concerns a run: if it is parked, its next attempt is due."""
    if task.status is not TaskStatus.WAITING:
        return Transition(task)
    return next_attempt(task, at=at)


def failed(outcome: AttemptOutcome, error: LlamaDeployError) -> AttemptOutcome:
    """Return the outcome of an attempt whose result cannot be stored."""
    failure = failure_of(type(error), str(error))
    empty = dict.fromkeys(["text_parts", "value", "value_type", "terminal_event", "event_value"])
    changes = {"status": TaskStatus.FAILED, "result": str(error), "error": failure}
    return outcome.model_copy(update={**empty, **changes})


def move_on(
    task: TaskRecord, blame: Blame, *, at: datetime, backoff: Backoff, because: str | None = None
) -> Transition:
    """The process that ran the task is gone: the next attempt, or the failure after too many charges.

    Only a charged task is ever delayed or fails. Parking, and steps that end late, forgive everything; see
    `journal`.

    Args:
        task: The task.
        blame: What the death means for it; see `deaths.judge`.
        at: The present time.
        backoff: How long further attempts of a charged task are delayed.
        because: How the process ended, in words that follow `the process`. None: not known.
    """
    if blame is Blame.CHARGED:
        return lose(task, at=at, backoff=backoff, because=because)
    if blame is Blame.PRESENT:
        task = task._replace(deaths=task.deaths + 1)
    return take_back(task, reason=TakeoverReason.LOST, at=at)


def lose(task: TaskRecord, *, at: datetime, backoff: Backoff, because: str | None = None) -> Transition:
    """The task is charged with the death of its process: the next attempt, or the failure after too many.

    After the first charge, the next attempt is due at once. After more, each further attempt is delayed
    longer than the one before. See `move_on` for the arguments.
    """
    if task.cancel_requested:
        return finish(task, cancelled_result(task), at=at)
    task = task._replace(losses=task.losses + 1, deaths=task.deaths + 1)
    if task.losses >= task.max_attempts:
        failure = failure_of(AttemptsExhaustedError, _exhausted(task, because))
        return finish(task, failed_result(task, failure), at=at)
    following = next_attempt(take_over(task, TakeoverReason.LOST), at=at)
    if task.losses == 1:
        return following
    due = at + timedelta(seconds=backoff.delay(task.losses - 1))
    return Transition(following.task._replace(dispatches=0, redispatch_at=due))


def _exhausted(task: TaskRecord, because: str | None) -> str:
    count = task.losses
    ended = f"{count} process{'es' if count > 1 else ''} of service {task.target} ended"
    last = "the last one" if count > 1 else "it"
    how = because or "went silent for longer than its lease"
    return f"{ended} in which this task was alone, or which it had blocked; {last} {how}"


def drop(task: TaskRecord, *, at: datetime, backoff: Backoff) -> Transition:
    """A living instance does not hold the attempt that it has claimed: the next one is due.

    No process has died. Usually the answer to the claim was lost, which is nobody's fault, so the task is not
    charged. But it might be that no instance can begin the task. Therefore it counts as a death at which the
    task was present, and a suspect, which has had two of them, is charged.
    """
    blame = Blame.CHARGED if is_suspect(task) else Blame.PRESENT
    return move_on(task, blame, at=at, backoff=backoff, because="could not begin it")


def hand_back(task: TaskRecord, *, attempt: int, token: str, at: datetime) -> Transition:
    """The owner will not finish the attempt. This does not count as a loss.

    Raises:
        FencedOutError: The sender does not own the attempt.
    """
    check_owner(task, attempt=attempt, token=token)
    return take_back(task, reason=TakeoverReason.HANDED_BACK, at=at)


def take_back(task: TaskRecord, *, reason: TakeoverReason, at: datetime) -> Transition:
    """The running attempt is taken from its owner, which is not the task's fault: the next one is due."""
    if task.cancel_requested:
        return finish(task, cancelled_result(task), at=at)
    return next_attempt(take_over(task, reason), at=at)


def refuse(task: TaskRecord, *, attempt: int, error: LlamaDeployError, at: datetime) -> Transition:
    """The queue rejects the attempt's message permanently: `queued` → `failed`."""
    if task.status is not TaskStatus.QUEUED or task.attempt != attempt:
        return Transition(task)
    failure = failure_of(type(error), f"the task cannot be sent to its service: {error}")
    return finish(task, failed_result(task, failure), at=at)


def cancel(task: TaskRecord, *, at: datetime) -> Transition:
    """A client cancels the task. A running one is asked to stop. Idempotent.

    Raises:
        TaskFinishedError: The task has ended in another way.
    """
    if task.status is TaskStatus.CANCELLED:
        return Transition(task)
    check_open(task)
    if task.status is TaskStatus.RUNNING:
        requested_at = task.cancel_requested_at if task.cancel_requested else at
        asked = task._replace(cancel_requested=True, cancel_requested_at=requested_at)
        return Transition(asked, notify_cancel=True)
    return finish(task, cancelled_result(task), at=at)


def end_blocked(
    task: TaskRecord, *, running_seconds: float | None, timeout: float | None, at: datetime
) -> Transition | None:
    """The instance of a running task is blocked, so it cannot end the task although it should.

    Args:
        task: The task.
        running_seconds: How much of its time limit the run has used. None: not known.
        timeout: The time limit. None: without limit.
        at: The present time.

    Returns:
        The end of a task whose cancellation was requested some time ago, or that is over its time limit; what
        the instance reports later is rejected. None: the task goes on.
    """
    asked_at = task.cancel_requested_at
    if task.cancel_requested and (asked_at is None or at - asked_at > _CANCEL_GRACE):
        return finish(task, cancelled_result(task), at=at)
    if timeout is None or running_seconds is None or running_seconds < timeout:
        return None
    reason = f"timed out after {timeout} s: a step, of this task or another, blocks its instance"
    outcome = AttemptOutcome(
        task_id=task.task_id,
        attempt=task.attempt,
        token=task.token or "",
        first=task.attempt_events,
        events=[],
        status=TaskStatus.TIMED_OUT,
        error=TaskFailure(type=_TIMEOUT_TYPE, message=reason),
    )
    return end(task, outcome, at=at)


def dispatch_again(task: TaskRecord) -> Transition:
    """The attempt was not claimed for long, or was delayed: it is published (again)."""
    if task.status is not TaskStatus.QUEUED:
        return Transition(task)
    return Transition(task._replace(dispatches=task.dispatches + 1), dispatch=True)


def is_held_back(task: TaskRecord) -> bool:
    """Whether the task's attempt is delayed until its `redispatch_at`, and was not published yet."""
    return task.status is TaskStatus.QUEUED and not task.dispatches


def move(task: TaskRecord, version: str) -> Transition:
    """Somebody moves the task to a version, which continues its run. A parked run stays parked.

    Raises:
        TaskFinishedError: The task has ended.
        ConflictError: It is running, it waits for its turn, or nothing of its run is stored.
    """
    _check_movable(task)
    if not task.has_run:
        raise ConflictError(
            f"nothing of the run of task {task.task_id} is stored, so it cannot continue with a version;"
            ' move it from "start"'
        )
    # A queued attempt that is delayed stays so.
    is_due = task.status is TaskStatus.QUEUED and not is_held_back(task)
    return Transition(task._replace(pinned_to=version), dispatch=is_due)


def start_again(task: TaskRecord, version: str, *, at: datetime) -> Transition:
    """Somebody moves the task to a version, which begins its run again. Its stream goes on.

    The next attempt is offered all events that were sent to the task. Idempotent until its run is stored.

    Raises:
        TaskFinishedError: The task has ended.
        ConflictError: It is running, or waits for its turn.
    """
    check_open(task)
    if task.pinned_to == version and not task.has_run:
        return Transition(task)
    _check_movable(task)
    task = take_over(task._replace(repeats_from=start_of_run(task), unfinished=None), TakeoverReason.MOVED)
    fresh = task._replace(
        pinned_to=version,
        version=None,
        has_run=False,
        journal_length=0,
        running_seconds=0.0,
        losses=0,
        deaths=0,
        durability=None,
        volatile_reason=None,
    )
    return replace(next_attempt(fresh, at=at), forget_run=task.has_run, restore_inbox=True)


def _check_movable(task: TaskRecord) -> None:
    check_open(task)
    if task.status not in (TaskStatus.QUEUED, TaskStatus.WAITING):
        advice = "cancel it, or wait" if task.status is TaskStatus.RUNNING else "wait for its turn"
        raise ConflictError(
            f"task {task.task_id} is {task.status.value}, and only a queued or waiting task can be moved:"
            f" {advice}"
        )


def check_open(task: TaskRecord) -> None:
    """Raise `TaskFinishedError` if the task has ended."""
    if task.status.is_terminal:
        raise TaskFinishedError(
            f"task {task.task_id} has ended with the status {task.status.value}",
            task_id=task.task_id,
            status=task.status.value,
        )


def check_owner(task: TaskRecord, *, attempt: int, token: str) -> None:
    """Raise `FencedOutError` unless the token is that of the attempt that is running."""
    if task.status is not TaskStatus.RUNNING or task.attempt != attempt or task.token != token:
        raise FencedOutError(
            f"the sender does not own attempt {attempt} of task {task.task_id}:"
            f" the task is {task.status.value} in attempt {task.attempt}",
            task_id=task.task_id,
            attempt=attempt,
        )


def _new_events(task: TaskRecord, sent: AttemptEvents) -> list[EventPayload]:
    check_owner(task, attempt=sent.attempt, token=sent.token)
    if sent.first > task.attempt_events:
        raise EventsMissingError(
            f"events from {sent.first} on of attempt {sent.attempt} of task {task.task_id} arrived,"
            f" but {task.attempt_events} is the next",
            task_id=task.task_id,
            expected=task.attempt_events,
        )
    return sent.events[task.attempt_events - sent.first :]


def _grown(task: TaskRecord, count: int) -> TaskRecord:
    return task._replace(stream_length=task.stream_length + count, attempt_events=task.attempt_events + count)


def _park(task: TaskRecord, parking: Parking, *, at: datetime) -> Transition:
    if task.inbox_length > parking.inbox_seq:
        return next_attempt(task, at=at)
    seconds = parking.wake_in
    sleep = None if seconds is None else timedelta(seconds=min(seconds, _LONGEST_SLEEP.total_seconds()))
    wake_at = None if sleep is None else at + sleep
    return Transition(moved(task, TaskStatus.WAITING, at=at, **NO_OWNER, wake_at=wake_at))
