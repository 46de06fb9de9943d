"""The questions that the steps of a run have asked with `ctx.wait_for_event`.

The library keeps the question of a waiting step, with its answer, until the step ends. Until then, each
further event that matches replaces the answer and runs the step again, beside the run that works on the
first answer. This also happens while the step waits for its next answer or for its retry. A run therefore
keeps such an event back until another question wants it or the step has ended: the first answer counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workflows import Workflow
from workflows.events import Event

from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.question_index import Branch, Kind, Question, QuestionIndex
from llama_deploy.workflow_library import (
    AddWaiter,
    BrokerState,
    DeleteWaiter,
    StepWorkerResult,
    TickAddEvent,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
    address_of,
    address_of_wait,
    step_accepts_event,
    step_configs,
    waiters,
    will_try_again,
    work_items,
)


class Questions:
    """Knows which questions of a run are open, answered, or being worked on.

    Args:
        workflow: The workflow, whose steps also begin with events.
        asked: Told which steps wait, to report it. None: nothing is reported.
    """

    def __init__(self, workflow: Workflow, asked: OpenQuestions | None = None) -> None:
        self._workflow = workflow
        self._report = asked
        self._asked: dict[tuple[str, str], Question] = {}
        self._branches: dict[tuple[str, int], Branch] = {}
        self._working: dict[Branch, None] = {}
        self._index = QuestionIndex()
        self._open = 0
        self.changes = 0
        """How often something has happened since which the run may want an event that it did not want."""

    def resume(self, run: BrokerState) -> None:
        """Learn the questions of a run that an earlier attempt has begun."""
        asked: dict[tuple[str, str | None], Question] = {}
        for step_id, waiter in waiters(run):
            question = self._ask(
                (str(step_id), waiter.waiter_id), waiter.waiting_for_event, waiter.requirements, waiter.event
            )
            if waiter.resolved_event is not None or waiter.timed_out:
                self._answer(question)
            asked[str(step_id), waiter.work_item_id] = question
        for step_id, item in work_items(run):
            if (worked_on := asked.get((str(step_id), item.work_item_id))) is not None:
                self._work(worked_on.branch, 1)

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn from an event, the end of a time limit, or the result of a step."""
        if isinstance(tick, TickAddEvent):
            if tick.collection_release_payload is None:
                kinds = self._index.taking(tick.event)
                address = address_of(tick.event) if kinds else None
                for kind in kinds:
                    for question in kind.questions:
                        if address is None or address == address_of_wait(*question.key):
                            self._answer(question, by_event=True)
                            self._work(question.branch, 1)
        elif isinstance(tick, TickWaiterTimeout):
            late = self._asked.get((str(tick.step_id), tick.waiter_id))
            if late is not None and not late.is_answered:
                self._answer(late)
                self._work(late.branch, 1)
        elif isinstance(tick, TickStepResult):
            self._on_result(tick)

    def on_idle(self) -> None:
        """Learn that no step is running."""
        for branch in list(self._working):
            self._work(branch, -branch.working)

    @property
    def is_any_open(self) -> bool:
        """Whether a step waits for an event, or for the end of its time limit."""
        return self._open > 0

    def is_asked_for(self, event: Event) -> bool:
        """Whether a step waits for an event."""
        return self._open > 0 and any(kind.open for kind in self._index.taking(event))

    def waits_for(self, step: str, waiter_id: str) -> bool:
        """Whether a wait of a step is open."""
        question = self._asked.get((step, waiter_id))
        return question is not None and not question.is_answered

    def is_wanted_by_others(self, event: Event, step: str, waiter_id: str) -> bool:
        """Whether an event would also reach another wait than this one."""
        return any(
            question.key != (step, waiter_id)
            for kind in self._index.taking(event)
            for question in kind.questions
        )

    def wants(self, event: Event) -> bool:
        """Whether the run can use an event for more than replacing an earlier answer."""
        matching = self._index.taking(event)
        if any(kind.working for kind in matching):
            return False
        if not matching or any(kind.open for kind in matching):
            return True
        # The questions of a step that has failed for good stay answered for ever. They must not keep an event
        # from a step that begins with it.
        return not any(kind.asking for kind in matching) and self._begins_a_step(event, matching)

    def _on_result(self, tick: TickStepResult) -> None:
        step = str(tick.step_id)
        # A step that waits for its retry is still in progress.
        branch = None if will_try_again(tick) else self._branches.get((step, id(tick.event)))
        if branch is not None and branch.working:
            self._work(branch, -1)
        has_ended = any(isinstance(each, StepWorkerResult) for each in tick.result)
        for result in tick.result:
            if isinstance(result, AddWaiter):
                key = (step, result.waiter_id)
                self._ask(key, result.event_type, result.requirements, tick.event, (tick, result))
            elif isinstance(result, DeleteWaiter) and has_ended:
                self._forget((step, result.waiter_id))

    def _ask(
        self,
        key: tuple[str, str],
        awaited: type[Event],
        requirements: Mapping[str, Any],
        begun: Event,
        result: tuple[TickStepResult, AddWaiter[Any]] | None = None,
    ) -> Question:
        """Add the question of a step by its name and that of its wait."""
        self._forget(key)
        step, waiter_id = key
        config = step_configs(self._workflow).get(step)
        takes_subclasses = config is not None and config.accept_event_subclasses
        question = Question(
            self._branches.setdefault((step, id(begun)), Branch(step, begun)),
            self._index.kind(awaited, requirements, takes_subclasses=takes_subclasses),
            key,
        )
        if self._report is not None:
            self._report.asked(
                step, waiter_id, awaited, requirements, takes_subclasses=takes_subclasses, result=result
            )
        question.add()
        self._asked[key] = question
        self._open += 1
        self.changes += 1
        return question

    def _answer(self, question: Question, *, by_event: bool = False) -> None:
        if not question.is_answered:
            if self._report is not None:
                self._report.closed(*question.key, is_answered=by_event)
            self._open -= 1
            self.changes += question.answer()

    def _work(self, branch: Branch, change: int) -> None:
        """Count how often a branch works on answers."""
        self.changes += branch.change(working=change)
        if branch.working:
            self._working[branch] = None
        else:
            self._working.pop(branch, None)
            self._release(branch)

    def _forget(self, key: tuple[str, str]) -> None:
        """Remove a question, if there is one."""
        question = self._asked.pop(key, None)
        if question is not None:
            self._answer(question)
            question.remove()
            self.changes += not question.kind.working
            self._index.forget(question.kind)
            self._release(question.branch)

    def _release(self, branch: Branch) -> None:
        """Forget a branch that has neither questions nor answers."""
        if not branch.questions and not branch.working:
            self._branches.pop((branch.step, id(branch.begun)), None)

    def _begins_a_step(self, event: Event, matching: Sequence[Kind]) -> bool:
        """Whether a step other than those that ask begins with an event."""
        asking = {step for kind in matching for step in kind.steps}
        return any(
            step_accepts_event(event, config.accepted_events, allow_subclasses=config.accept_event_subclasses)
            for name, config in step_configs(self._workflow).items()
            if name not in asking
        )
