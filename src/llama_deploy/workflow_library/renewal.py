"""A run that is retried: what its steps have used up in the task before is forgotten."""

from __future__ import annotations

from workflows.runtime.types.internal_state import BrokerState

_AT_ONCE = 0.0
"""The library takes the time at which the step begins."""


def renewed(state: BrokerState) -> BrokerState:
    """Return a state in which no step has failed yet, and none waits until it may be tried again.

    A step that had used up its retry policy gets all of its tries again. `state` may be changed.
    """
    for worker in state.workers.values():
        for queued in worker.queue:
            queued.attempts = queued.first_attempt_at = queued.not_before = None
            queued.last_exception = queued.last_failed_at = None
            queued.recovery_counts = {}
        for running in worker.in_progress:
            running.attempts, running.first_attempt_at = 0, _AT_ONCE
            running.last_exception = running.last_failed_at = None
            running.recovery_counts = {}
    for delivery in state.deliveries.values():
        delivery.recovery_counts = {}
    return state
