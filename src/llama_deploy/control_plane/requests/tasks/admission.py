"""The acceptance of a new task: one that a client submits, or one that retries another task."""

from __future__ import annotations

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.lifecycle import Admission
from llama_deploy.control_plane.requests.sessions.session_requests import policy_of_call
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import SessionPolicy
from llama_deploy.types.audit import AuditAction
from llama_deploy.types.keys import public_id


def accept_task(unit: Unit, task: TaskRecord, *, asked: SessionPolicy | None = None) -> TaskRecord:
    """Store a new task, whose status is `pending`; see `admit_task`."""
    return add_admitted(unit, admit_task(unit, task, asked=asked))


def admit_task(unit: Unit, task: TaskRecord, *, asked: SessionPolicy | None = None) -> Admission:
    """Decide on a new task by the policy of its session. Changes nothing.

    The command must have declared the session with its open tasks.

    Args:
        unit: The rows.
        task: The task.
        asked: The policy that it asks for, see `TaskSubmission.session_policy`.

    Raises:
        SessionBusyError: The policy is `reject` and the session has an open task.
        SessionNotFoundError: The session does not exist.
        InvalidRequestError: The session cannot have the policy that the task asks for.
    """
    policy = policy_of_call(asked, unit.sessions.get(task.session_id))
    if policy is SessionPolicy.INTERRUPT:  # which cancels each of them
        open_tasks = unit.tasks.open_of(task.session_id)
    else:
        passes = policy is SessionPolicy.PARALLEL_WHILE_WAITING
        open_tasks = unit.tasks.oldest_open_of(task.session_id, past_waiting=passes)
    return lifecycle.admit(task, open_tasks=open_tasks, policy=policy)


def add_admitted(unit: Unit, admission: Admission) -> TaskRecord:
    """Store an admitted task, and cancel those that it interrupts."""
    accepted = unit.add_task(admission.accepted)
    for other in admission.cancel:
        unit.apply(lifecycle.cancel(unit.tasks.get(other.task_id), at=unit.now))
        unit.audit.note(AuditAction.TASK_CANCEL, other.task_id, interrupted_by=public_id(accepted.task_id))
    # Cancelling the others may have started this task.
    return unit.tasks.find(accepted.task_id) or accepted
