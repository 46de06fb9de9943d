"""Readers of events that retention has removed: they are told, because a gap would look like the whole."""

from __future__ import annotations

from collections.abc import Sequence

from llama_deploy.errors import EventsExpiredError
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.types.keys import public_id


async def check_cursor(store: StateStore, task: TaskRecord, after: int) -> None:
    """Check that no event of a task after a cursor was removed.

    Raises:
        EventsExpiredError: One was.
        UnavailableError: The store does not answer.
    """
    # Of a task that has not ended, nothing is removed. The terminal event stays.
    if task.status.is_terminal and after < task.stream_length - 2:
        check_no_gap(await store.read(lambda tx: tx.events.load(task.task_id, after=after, limit=1)), after)


def check_no_gap(events: Sequence[EventRecord], after: int) -> None:
    """Check that events follow a cursor without a gap.

    Raises:
        EventsExpiredError: Events between them were removed.
    """
    if events and events[0].position > after + 1:
        task_id, first = public_id(events[0].task_id), events[0].position
        raise EventsExpiredError(
            f"the events {after + 1} to {first - 1} of task {task_id} were removed because their retention"
            f" time was over. Read on after {first - 1}: the terminal event is still there, and the result is"
            " with the task",
            task_id=task_id,
            after=after,
            next_after=first - 1,
        )
