"""The questions that the steps of a run have asked with `ctx.wait_for_event`.

The library keeps the question of a waiting step, with its answer, until the step ends. Until then, each
further event that matches replaces the answer and runs the step again, beside the run that works on the
first answer. This also happens while the step waits for its next answer or for its retry. A run therefore
keeps such an event back until another question wants it or the step has ended: the first answer counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workflows import Workflow
from workflows.events import Event

from llama_deploy.workflow_library import (
    AddWaiter,
    BrokerState,
    DeleteWaiter,
    StepWorkerResult,
    TickAddEvent,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
    event_matches,
    step_accepts_event,
    step_configs,
    waiters,
    will_try_again,
    work_items,
)


@dataclass(slots=True, eq=False)
class Question:
    """An event that a step waits for, or has waited for and not ended since."""

    step: str
    awaited: type[Event]
    requirements: dict[str, Any]
    takes_subclasses: bool
    begun: Event
    """The event with which the step began. Its identity tells parallel runs of one step apart."""
    is_answered: bool = False
    """Whether the event has come, or the time limit is over."""

    def takes(self, event: Event) -> bool:
        """Whether the library would run the step again with this event."""
        return event_matches(event, self.awaited, allow_subclasses=self.takes_subclasses) and all(
            getattr(event, name, None) == value for name, value in self.requirements.items()
        )

    def is_asked_in(self, step: str, begun: Event) -> bool:
        """Whether the run of `step` that began with the event `begun` has asked it."""
        return self.step == step and self.begun is begun


class Questions:
    """Knows which questions of a run are open, answered, or being worked on.

    Args:
        workflow: The workflow, whose steps also begin with events.
    """

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._questions: dict[tuple[str, str], Question] = {}
        self._in_progress: list[Question] = []
        """One question for each run of a step that works on an answer."""

    def resume(self, run: BrokerState) -> None:
        """Learn the questions of a run that an earlier attempt has begun."""
        asked: dict[tuple[str, str | None], Question] = {}
        for step_id, waiter in waiters(run):
            question = self._question(
                str(step_id), waiter.waiting_for_event, waiter.requirements, waiter.event
            )
            question.is_answered = waiter.resolved_event is not None or waiter.timed_out
            self._questions[question.step, waiter.waiter_id] = question
            asked[question.step, waiter.work_item_id] = question
        for step_id, item in work_items(run):
            if (worked_on := asked.get((str(step_id), item.work_item_id))) is not None:
                self._in_progress.append(worked_on)

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn from an event, the end of a time limit, or the result of a step."""
        if isinstance(tick, TickAddEvent):
            if tick.collection_release_payload is None:
                for question in self._questions.values():
                    if question.takes(tick.event):
                        self._answer(question)
        elif isinstance(tick, TickWaiterTimeout):
            late = self._questions.get((str(tick.step_id), tick.waiter_id))
            if late is not None and not late.is_answered:
                self._answer(late)
        elif isinstance(tick, TickStepResult):
            self._on_result(tick)

    def on_idle(self) -> None:
        """Learn that no step is running."""
        self._in_progress.clear()

    @property
    def is_any_open(self) -> bool:
        """Whether a step waits for an event, or for the end of its time limit."""
        return any(not each.is_answered for each in self._questions.values())

    def wants(self, event: Event) -> bool:
        """Whether the run can use an event for more than replacing an earlier answer."""
        matching = [each for each in self._questions.values() if each.takes(event)]
        if any(self._is_in_progress(each) for each in matching):
            return False
        if not matching or not all(each.is_answered for each in matching):
            return True
        # The questions of a step that has failed for good stay answered for ever. They must not keep an event
        # from a step that begins with it.
        return not any(self._asks_again(each) for each in matching) and self._begins_a_step(event, matching)

    def _on_result(self, tick: TickStepResult) -> None:
        step = str(tick.step_id)
        # A step that waits for its retry is still in progress.
        if not will_try_again(tick):
            runs = [each for each in self._in_progress if each.is_asked_in(step, tick.event)]
            if runs:
                self._in_progress.remove(runs[0])
        has_ended = any(isinstance(each, StepWorkerResult) for each in tick.result)
        for result in tick.result:
            if isinstance(result, AddWaiter):
                self._questions[step, result.waiter_id] = self._question(
                    step, result.event_type, result.requirements, tick.event
                )
            elif isinstance(result, DeleteWaiter) and has_ended:
                self._questions.pop((step, result.waiter_id), None)

    def _question(
        self, step: str, awaited: type[Event], requirements: dict[str, Any], begun: Event
    ) -> Question:
        config = step_configs(self._workflow).get(step)
        takes_subclasses = config is not None and config.accept_event_subclasses
        return Question(step, awaited, requirements, takes_subclasses, begun)

    def _answer(self, question: Question) -> None:
        question.is_answered = True
        self._in_progress.append(question)

    def _is_in_progress(self, question: Question) -> bool:
        return any(each.is_asked_in(question.step, question.begun) for each in self._in_progress)

    def _asks_again(self, question: Question) -> bool:
        """Whether the step of an answered question waits for another answer."""
        return any(
            not each.is_answered and each.is_asked_in(question.step, question.begun)
            for each in self._questions.values()
        )

    def _begins_a_step(self, event: Event, matching: Sequence[Question]) -> bool:
        """Whether a step other than those that ask begins with an event."""
        asking = {each.step for each in matching}
        return any(
            step_accepts_event(event, config.accepted_events, allow_subclasses=config.accept_event_subclasses)
            for name, config in step_configs(self._workflow).items()
            if name not in asking
        )
