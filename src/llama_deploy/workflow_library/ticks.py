"""The ticks of a run: what happens in it, as its journal stores it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final

from workflows.events import Event, InternalDispatchEvent
from workflows.runtime.types.named_task import PendingWorker
from workflows.runtime.types.results import SentEvent, StepWorkerFailed, StepWorkerResult
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import TickAddEvent, TickStepResult, WorkflowTick

_NO_STEP: Final = StepId.root("__placeholder__")


def events_of(tick: WorkflowTick) -> Iterator[tuple[str, Event]]:
    """Yield the events of a tick, each with a name to show to users."""
    if isinstance(tick, TickAddEvent):
        yield f"event {type(tick.event).__name__}", tick.event
    elif isinstance(tick, TickStepResult):
        results = [each.result for each in tick.result if isinstance(each, StepWorkerResult)]
        for event in (*results, *(sent.event for sent in tick.sends)):
            if event is not None:
                yield f"event {type(event).__name__}", event


def execution_of(step: PendingWorker | TickStepResult) -> Hashable:
    """Return what a start of a step and its result have in common. Another start may have it afterwards."""
    return step.step_id, step.worker_id, step.invocation_namespace


def will_try_again(tick: TickStepResult) -> bool:
    """Whether a step has failed and its retry policy runs it again."""
    decisions = [each.retry_decision for each in tick.result if isinstance(each, StepWorkerFailed)]
    return any(decision is not None and decision.delay is not None for decision in decisions)


def placeholder(tick: TickAddEvent) -> TickAddEvent:
    """Return a tick that replaces an event which the run has received before. No step takes it."""
    return TickAddEvent(event=InternalDispatchEvent(), step_id=_NO_STEP, emission=tick.emission)


def sent_placeholder(sent: SentEvent) -> SentEvent:
    """Return the `placeholder` of an event in the result of a step."""
    return sent.model_copy(update={"event": InternalDispatchEvent(), "step_id": _NO_STEP})


def is_placeholder(tick: TickAddEvent) -> bool:
    """Whether a tick was made by `placeholder`."""
    return tick.step_id == _NO_STEP
