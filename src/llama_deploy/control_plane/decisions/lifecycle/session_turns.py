"""When a new task may begin: the policy of its session. See the package for the whole life of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from llama_deploy.control_plane.decisions import hops
from llama_deploy.control_plane.decisions.transitions import Transition, first_attempt
from llama_deploy.errors import SessionBusyError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import SessionPolicy, TaskStatus
from llama_deploy.types.keys import public_id


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
    if policy is SessionPolicy.PARALLEL or all(lets_pass(other, policy) for other in open_tasks):
        return Admission(take_turn(task, at=task.created_at))
    if policy is SessionPolicy.REJECT:
        raise SessionBusyError(
            f"session {public_id(task.session_id)} has the open task {public_id(open_tasks[0].task_id)}, and"
            " its policy rejects others; wait for its end, or use another session",
            session_id=public_id(task.session_id),
        )
    return Admission(Transition(task), cancel=open_tasks if policy is SessionPolicy.INTERRUPT else ())


def lets_pass(task: TaskRecord, policy: SessionPolicy) -> bool:
    """Whether later tasks of the session need not wait for an open one, because it waits itself."""
    return policy is SessionPolicy.PARALLEL_WHILE_WAITING and task.shown_status is TaskStatus.WAITING


def take_turn(task: TaskRecord, *, at: datetime) -> Transition:
    """It is the task's turn in its session: `pending` → `queued`, or the orchestrator is asked first."""
    if task.routing is not None:
        return hops.ask_for_route(task, at=at)
    return first_attempt(task, at=at)
