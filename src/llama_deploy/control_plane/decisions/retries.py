"""What becomes of a task that is tried again: a new task. No I/O, no clock.

The ended task stays as it is. The new one starts from the beginning, or has a copy of the journal that the
ended one has left, and goes on after its last finished step, or before an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llama_deploy.control_plane.decisions.forks import ForkedRun
from llama_deploy.errors import RetryRefusedError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import Durability, TaskStatus
from llama_deploy.types.instance_protocol import RunOrigin, RunRenewal
from llama_deploy.types.keys import public_id
from llama_deploy.types.retries import FROM_START
from llama_deploy.types.task_lists import EndedStep


@dataclass(frozen=True, slots=True)
class Retry:
    """The new task, and what it takes from the ended one."""

    task: TaskRecord
    """It is `pending`."""
    copies_run: bool = False
    copies_inbox: bool = False
    fork: Fork | None = None
    """Before which step it goes on, if that is not the last one."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Before which step a run is forked."""

    step: EndedStep
    run: ForkedRun | None
    """What is stored of the run at that point. None: nothing, because the step was the first."""


def retry(
    ended: TaskRecord,
    *,
    task_id: str,
    origin: str,
    at: datetime,
    routing: str | None,
    input: str | None = None,  # noqa: A002 - the field of a task
    fork: Fork | None = None,
    trace: str | None = None,
) -> Retry:
    """Return the new task that retries a task.

    Args:
        ended: The task.
        task_id: The key of the new one.
        origin: `FROM_START`, `FROM_LAST_STEP`, or the id of the step of `fork`.
        at: The present time.
        routing: See `TaskRecord.routing`.
        input: The run arguments, only with `FROM_START`. None: the same.
        fork: Before which step it goes on.
        trace: See `TaskRecord.trace`.

    Raises:
        RetryRefusedError: The task has not ended, or nothing of its run is kept from which it could go on.
    """
    check_ended(ended)
    task = TaskRecord(
        task_id=task_id,
        trace=trace,
        session_id=ended.session_id,
        service_name=ended.service_name,
        input=ended.input if input is None else input,
        status=TaskStatus.PENDING,
        created_at=at,
        status_changed_at=at,
        max_attempts=ended.max_attempts,
        tenant=ended.tenant,
        subject=ended.subject,
        tags=ended.tags,
        priority=ended.priority,
        routing=routing,
        retry_of=ended.task_id,
        retry_from=origin,
    )
    if origin == FROM_START:
        return Retry(task)
    if fork is not None:
        # Its inbox is empty: what the run had taken is in the journal, and the rest came too late.
        length = 0 if fork.run is None else fork.run.length
        return Retry(task._replace(has_run=fork.run is not None, journal_length=length), fork=fork)
    check_kept(ended, is_routed=routing is not None)
    # The next attempt of the ended task would have been offered the same.
    task = task._replace(
        has_run=ended.has_run, journal_length=ended.journal_length, inbox_length=ended.inbox_length
    )
    return Retry(task, copies_run=ended.has_run, copies_inbox=ended.inbox_length > 0)


def check_ended(task: TaskRecord) -> None:
    """Raise `RetryRefusedError` if a task has not ended."""
    if not task.status.is_terminal:
        raise _refused(task, "open", f"has not ended: it is {task.status.value}. Cancel it first, or wait")


def check_kept(ended: TaskRecord, *, is_routed: bool, from_beginning: bool = False) -> None:
    """Raise `RetryRefusedError` if nothing of a run is kept from which a retry could go on.

    Args:
        ended: The task.
        is_routed: Whether an orchestrator chooses the services of new tasks.
        from_beginning: Whether the run is to begin before its first step, where nothing was stored yet.
    """
    if is_routed or ended.routed_to is not None:
        raise _refused(ended, "route", "was sent from service to service by an orchestrator", again=True)
    if ended.durability is Durability.VOLATILE:
        raise _refused(
            ended, "volatile", f"is volatile, so nothing of it is stored: {ended.volatile_reason}", again=True
        )
    if ended.durability is Durability.TASK:
        raise _refused(
            ended, "durability", 'has run with durability="task", so nothing of it is stored', again=True
        )
    if from_beginning or ended.has_run:
        return
    if ended.status is TaskStatus.SUCCEEDED:
        raise _refused(
            ended,
            "succeeded",
            "has succeeded, and its journal was deleted when it ended; the setting retention_journals keeps"
            " those of later tasks",
            again=True,
        )
    # A run has used time when its journal is written. An older release deletes each journal at the end.
    if ended.running_seconds > 0:
        raise _refused(ended, "journal", "has ended, and its journal was not kept", again=True)


def origin_of_copy(ended: TaskRecord, stored: RunOrigin | None, *, at: datetime) -> RunOrigin:
    """Return where the copy of a run comes from.

    Args:
        ended: The task whose run is copied.
        stored: Where its own run comes from.
        at: The present time.
    """
    paused = 0.0 if ended.finished_at is None else (at - ended.finished_at).total_seconds()
    renewal = RunRenewal(entries=ended.journal_length, paused_seconds=max(0.0, paused))
    if stored is None:
        return RunOrigin(task_id=ended.task_id, renewals=[renewal])
    return RunOrigin(task_id=stored.task_id, renewals=[*stored.renewals, renewal])


def origin_of_fork(
    ended: TaskRecord, stored: RunOrigin | None, *, step: EndedStep, entries: int, at: datetime
) -> RunOrigin:
    """Return where a run comes from that is forked before a step.

    Args:
        ended: The task whose run is forked.
        stored: Where its own run comes from.
        step: The step.
        entries: How many entries the journal has had when it began.
        at: The present time.
    """
    paused = (at - step.began_at).total_seconds()
    renewal = RunRenewal(entries=entries, paused_seconds=max(0.0, paused))
    task_id = ended.task_id if stored is None else stored.task_id
    return RunOrigin(task_id=task_id, renewals=[*([] if stored is None else stored.renewals), renewal])


def not_reached(
    ended: TaskRecord, step: EndedStep, nearest: EndedStep | None, *, unreadable: Sequence[int] = ()
) -> RetryRefusedError:
    """Return the error for a step to which what is kept of a run does not reach back.

    Args:
        ended: The task.
        step: The step.
        nearest: The first step after it before which the run can be forked. None: there is none.
        unreadable: The numbers of the writes after it of which something cannot be read, from 1.
    """
    advice = (
        "; retry it from the last step"
        if nearest is None
        else f"; the first one after it from which it can is step {nearest.step_id} ({nearest.step})"
    )
    why = (
        f"what write {unreadable[-1]} of its journal has replaced cannot be read; it is damaged, or a newer"
        " release has written it"
        if unreadable
        else "what is kept of its run does not reach back so far"
    )
    return _refused(ended, "step", f"cannot go on before step {step.step_id} ({step.step}): {why}{advice}")


def _refused(task: TaskRecord, reason: str, why: str, *, again: bool = False) -> RetryRefusedError:
    task_id = public_id(task.task_id)
    advice = '; retry it from "start", which runs all its steps again' if again else ""
    return RetryRefusedError(f"task {task_id} {why}{advice}", task_id=task_id, reason=reason)
