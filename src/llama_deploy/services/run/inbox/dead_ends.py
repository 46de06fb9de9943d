"""Tells a run that waits for somebody from a run in which nothing more can happen.

The library says of both that they are idle: no step is running, and none is about to.
"""

from __future__ import annotations

from workflows import Workflow
from workflows.events import Event, InputRequiredEvent, UnhandledEvent

from llama_deploy.workflow_library import (
    AddWaiter,
    StepWorkerResult,
    TickStepResult,
    WorkflowTick,
    steps_with_answers,
)


class DeadEnds:
    """Knows whether an idle run waits for an answer, apart from those to `ctx.wait_for_event`.

    It does if it has asked a question, because only the workflow's author knows which event is the answer, or
    if a step takes answers.

    Args:
        workflow: The workflow.
    """

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self.has_asked = False
        """Whether the run has asked a question, other than those of `ctx.wait_for_event`."""
        self._asked_by_waits: dict[int, Event] = {}
        """By their ids, until they were streamed."""
        self._last = "no step has run since the run was resumed"

    def on_event(self, event: Event) -> None:
        """Learn that the run has asked a question, or that no step took an event."""
        if isinstance(event, InputRequiredEvent):
            by_a_wait = self._asked_by_waits.pop(id(event), None) is not None
            self.has_asked = self.has_asked or not by_a_wait
        elif isinstance(event, UnhandledEvent):
            self._last = f"no step takes {event.event_type}, the last event"

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn what the last step returned."""
        if isinstance(tick, TickStepResult):
            waits = [each.waiter_event for each in tick.result if isinstance(each, AddWaiter)]
            self._asked_by_waits |= {id(each): each for each in waits if isinstance(each, InputRequiredEvent)}
            returned = [each.result for each in tick.result if isinstance(each, StepWorkerResult)]
            result = type(returned[-1]).__name__ if returned and returned[-1] is not None else "None"
            self._last = f"step {str(tick.step_id)!r} took {type(tick.event).__name__} and returned {result}"

    def reason(self) -> str | None:
        """Return why nothing more can happen. None: the run waits."""
        if self.has_asked or takes_answers(self._workflow):
            return None
        return (
            f"nothing is waited for, and {self._last}. To wait for an event from outside, use"
            " `ctx.wait_for_event`, or a step that takes a HumanResponseEvent"
        )


def takes_answers(workflow: Workflow) -> bool:
    """Whether a step takes an event that comes from outside.

    That is a `HumanResponseEvent`, or an event that no step declares to return, as there may be in a workflow
    that is not validated.
    """
    return bool(steps_with_answers(workflow))
