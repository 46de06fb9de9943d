"""The hops of a task with a route: from service to service, as an orchestrator says. No I/O, no clock.

Between two hops the task is `pending`, with the outcome of the hop before in its row, until the orchestrator
outside has named the next service (`go_on`), or has said that there is none (`conclude`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from llama_deploy.control_plane.decisions.attempt_history import with_past_attempt
from llama_deploy.control_plane.decisions.routing import Hop, Routing
from llama_deploy.control_plane.decisions.transitions import (
    NO_OWNER,
    Transition,
    failed_result,
    finish,
    first_attempt,
    moved,
    next_attempt,
)
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.instance_protocol import AttemptOutcome, EventPayload


def ask_for_route(task: TaskRecord, *, at: datetime) -> Transition:
    """It is the task's turn in its session: the orchestrator is asked for the first service."""
    return Transition(moved(task, TaskStatus.PENDING, at=at, redispatch_at=at), route=True)


def end_hop(
    task: TaskRecord, outcome: AttemptOutcome, *, at: datetime, events: Sequence[EventPayload]
) -> Transition:
    """The run is over, and with it all that was stored of it. The orchestrator is asked what follows."""
    kept = outcome.model_copy(update={"events": [], "token": "", "session_state": None})
    routing = Routing.of(task).model_copy(update={"outcome": kept})
    task = with_past_attempt(task, at=at, end=outcome.status.value)
    fresh = {"has_run": False, "journal_length": 0, "running_seconds": 0.0, "losses": 0, "deaths": 0}
    unknown = dict.fromkeys(["wake_at", "durability", "volatile_reason", "version", "pinned_to"])
    ended = moved(
        task,
        TaskStatus.PENDING,
        at=at,
        redispatch_at=at,
        routing=routing.encode(),
        **NO_OWNER,
        **fresh,
        **unknown,
    )
    return Transition(ended, events, forget_run=task.has_run, drop_inbox=True, route=True)


def is_unrouted(task: TaskRecord) -> bool:
    """Whether the task waits for the orchestrator to say where it goes."""
    return task.status is TaskStatus.PENDING and task.redispatch_at is not None


def go_on(task: TaskRecord, hop: Hop, *, waiting: Sequence[Hop], at: datetime) -> Transition:
    """The orchestrator has named the next service: `pending` → `queued`.

    Args:
        task: A task that waits for the orchestrator.
        hop: The service, and what it gets.
        waiting: Those that come after it.
        at: The present time.
    """
    ended = Routing.of(task).outcome
    # The stop event of the hop before is an ordinary event of the task.
    events = [] if ended is None or ended.stop_event is None else [ended.stop_event]
    start = task.stream_length + len(events)
    routing = Routing(input=hop.input, waiting=list(waiting), stream_start=start)
    task = task._replace(routed_to=hop.service_name, routing=routing.encode(), stream_length=start)
    if ended is None:
        return first_attempt(task, at=at)
    return replace(next_attempt(task, at=at), events=events)


def conclude(task: TaskRecord, result: TaskResult | TaskFailure, *, at: datetime) -> Transition:
    """The orchestrator has named no other service, or it has failed: `pending` → a terminal status.

    The stop event of the last hop is the terminal event, unless the orchestrator has failed.
    """
    if isinstance(result, TaskFailure):
        return finish(task, failed_result(task, result), at=at)
    ended = Routing.of(task).outcome
    stop_event = None if ended is None else ended.stop_event
    return finish(task, result, at=at, stop_event=stop_event)
