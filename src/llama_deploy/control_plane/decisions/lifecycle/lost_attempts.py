"""Attempts that their owners do not finish: their processes have died, do not hold them, or are blocked."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.control_plane.decisions.deaths import Blame, is_suspect
from llama_deploy.control_plane.decisions.lifecycle.owned_attempts import check_owner, end
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason, take_over
from llama_deploy.control_plane.decisions.transitions import (
    Transition,
    cancelled_result,
    failed_result,
    failure_of,
    finish,
    next_attempt,
)
from llama_deploy.errors import AttemptsExhaustedError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskFailure, TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome

_CANCEL_GRACE: Final = timedelta(seconds=2)
"""How long an instance may take to cancel an attempt before it is not asked any more."""
_TIMEOUT_TYPE: Final = "workflows.errors.WorkflowTimeoutError"
"""As instances report it, of the workflow library."""


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
