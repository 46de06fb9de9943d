"""The questions that a run has asked, as the control plane stores them.

A step asks with `ctx.wait_for_event`. Or it streams an `InputRequiredEvent`, and another step takes the
answer. The id of a question is a digest of what identifies it within the run, so it is the same in each
attempt, and a resumed run does not ask twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextvars import ContextVar
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

from workflows.events import Event, InputRequiredEvent

from llama_deploy.services.run.inbox.asked_counts import AskedCounts, has_ended
from llama_deploy.services.run.inbox.question_options import QuestionOptions, moment
from llama_deploy.services.values.answer_forms import AnswerForms
from llama_deploy.types.questions import AskedQuestion, WaitReport
from llama_deploy.workflow_library import (
    AddWaiter,
    DeleteWaiter,
    TickStepResult,
    WorkflowTick,
    execution_of,
    stable_waiter_id,
)

MAX_REPORTED: Final = 100
"""How many new questions one report holds."""
_OF_WAIT: Final = "wait"
_OF_STREAM: Final = "ask"
"""The first words of ids: the question of a step that waits, and a streamed one."""

asking_step: ContextVar[Hashable | None] = ContextVar("asking_step", default=None)
"""Which start of a step executes in this context. None: none does; the library itself streams."""


class OpenQuestions:
    """Learns what a run asks, and reports what has changed.

    Args:
        task_id: The task.
        forms: Describes the answers.
        answers: The classes of the events that steps take from outside.
        now: Returns the time of the run in seconds since 1970.
        known: The ids of the questions that are open according to the control plane.
        taken: How many entries of the inbox the run has taken.
        begins_again: Whether the run starts from its beginning in a further attempt.
    """

    def __init__(
        self,
        task_id: str,
        *,
        forms: AnswerForms,
        answers: Sequence[type[Event]],
        now: Callable[[], float],
        known: Collection[str] = (),
        taken: int = 0,
        begins_again: bool = False,
    ) -> None:
        self._task_id = task_id
        self._forms = forms
        self._answers = answers
        self._now = now
        self.counts = AskedCounts()
        """How often steps have asked under the same name."""
        streamed = [each for each in known if each.startswith(_OF_STREAM)]
        self._open: dict[str, AskedQuestion | None] = dict.fromkeys([] if begins_again else streamed)
        """The details of those that earlier attempts have asked are not known here."""
        self._waits: dict[tuple[str, str], str] = {}
        self._reporting = _Reporting(known)
        self._taken = 0 if begins_again else taken
        self._streamed: dict[tuple[str, int], int] = {}
        self._seen = 0
        self._unpaired: dict[Hashable, list[Event]] = {}
        """The questions that running steps have streamed, by `asking_step`."""
        self._by_waits: dict[int, Event] = {}
        """The asking events of steps that wait, by their ids, until they are streamed."""

    def resume(self, counts: AskedCounts) -> None:
        """Continue the counts of earlier attempts."""
        self.counts = counts

    # -- what happens in the run

    def asked(
        self,
        step: str,
        waiter_id: str,
        awaited: type[Event],
        requirements: Mapping[str, Any],
        *,
        takes_subclasses: bool,
        result: tuple[TickStepResult, AddWaiter[Any]] | None = None,
    ) -> None:
        """A step waits for an event.

        Args:
            step: Its name.
            waiter_id: The name of the wait.
            awaited: The class of the event.
            requirements: The fields of the event that must have these values.
            takes_subclasses: Whether the event may be of a derived class.
            result: The end of the step with which it has begun to wait. None: it was in an earlier attempt.
        """
        question_id = self._id_of_wait(step, waiter_id)
        self._waits[step, waiter_id] = question_id
        self._reporting.inherited.discard(question_id)
        asking, times_out_at = None, None
        if result is not None:
            tick, add = result
            streamed = self._unpaired.pop(execution_of(tick), [])
            asking = add.waiter_event or next(reversed(streamed), None)
            if isinstance(add.waiter_event, InputRequiredEvent):
                self._by_waits[id(add.waiter_event)] = add.waiter_event
            if add.timeout is not None and math.isfinite(add.timeout):
                times_out_at = moment((tick.stamped_at or self._now()) + add.timeout)
        if self._reporting.knows(question_id):
            self._open[question_id] = None
            return
        form = self._forms.of_wait(awaited, takes_subclasses=takes_subclasses)
        options = QuestionOptions.of(asking, awaited=awaited, now=self._now())
        self._open[question_id] = AskedQuestion(
            question_id=question_id,
            step=step,
            event_types=form.event_types,
            answer_schema=form.schema,
            check=form.check,
            requirements=_as_json(requirements),
            times_out_at=times_out_at,
            prompt=options.prompt,
            prompt_type=options.prompt_type,
            deadline=options.deadline,
            default=options.default,
            assignee=options.assignee,
            tags=options.tags,
        )

    def closed(self, step: str, waiter_id: str, *, is_answered: bool) -> None:
        """A step does not wait any more, for the answer has come or for another reason."""
        if (question_id := self._waits.pop((step, waiter_id), None)) is not None:
            self._open.pop(question_id, None)
            if is_answered:
                self._reporting.answered.add(question_id)

    def find_wait(self, question_id: str) -> tuple[str, str] | None:
        """Return the step that waits for the answer to a question, and the name of the wait."""
        return next((key for key, each in self._waits.items() if each == question_id), None)

    @staticmethod
    def is_of_wait(question_id: str) -> bool:
        """Whether a step waits for the answer to a question. Otherwise any step may take it."""
        return question_id.startswith(_OF_WAIT)

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn from the end of a step which of the questions that it has streamed are left."""
        if not isinstance(tick, TickStepResult):
            return
        self.counts.on_tick(tick)
        if not self._unpaired:
            return
        if any(isinstance(each, AddWaiter) for each in tick.result):
            return  # see `asked`
        streamed = self._unpaired.pop(execution_of(tick), [])
        # A step that has waited runs from its top again, and streams again what it had asked.
        if has_ended(tick) and not any(isinstance(each, DeleteWaiter) for each in tick.result):
            for event in streamed:
                self._add_streamed(event)

    def on_event(self, event: Event) -> None:
        """Learn that the run streams an event."""
        if not isinstance(event, InputRequiredEvent) or self._by_waits.pop(id(event), None) is not None:
            return
        execution = asking_step.get()
        if execution is None:
            self._add_streamed(event)
        else:
            self._unpaired.setdefault(execution, []).append(event)

    def on_taken(self, question_id: str | None) -> None:
        """The run has taken an entry of the inbox, the answer to a question if it has one."""
        self._taken += 1
        if question_id is not None and not self.is_of_wait(question_id):
            self._open.pop(question_id, None)
            self._reporting.answered.add(question_id)
            self._reporting.inherited.discard(question_id)

    def on_rejected(self, question_id: str) -> None:
        """The run could not read the answer to a question."""
        self._reporting.rejected.append(question_id)

    def on_seen(self, inbox_seq: int) -> None:
        """All entries of the inbox up to this one have arrived."""
        self._seen = inbox_seq

    def on_waiting(self) -> None:
        """Nothing in the run can proceed."""
        for event in [each for events in self._unpaired.values() for each in events]:
            self._add_streamed(event)
        self._unpaired.clear()
        self._reporting.waits = True
        self._reporting.inherited.clear()

    def on_working(self) -> None:
        """The run continues."""
        self._reporting.waits = False

    # -- what is reported

    @property
    def is_crowded(self) -> bool:
        """Whether more questions are to be reported than one report holds."""
        return len(self._open) > MAX_REPORTED and self._reporting.count_new(self._open) > MAX_REPORTED

    @property
    def has_changed(self) -> bool:
        """Whether there is something to report."""
        return self._reporting.next(self._open, self._seen) is not None

    def report(self) -> WaitReport | None:
        """Return what has changed since the last report that was stored. None: nothing has.

        Of many new questions, a report has the first ones; see `is_crowded`.
        """
        return self._reporting.next(self._open, self._seen)

    def stored(self, report: WaitReport) -> None:
        """The control plane has a report."""
        self._reporting.stored(report)
        for each in report.asked:
            if each.question_id in self._open:
                self._open[each.question_id] = None  # the details are not needed any more

    def _id_of_wait(self, step: str, waiter_id: str) -> str:
        name = stable_waiter_id(waiter_id)[0]
        return self._id(_OF_WAIT, step, name, str(self.counts.of(step, waiter_id)))

    def _add_streamed(self, event: Event) -> None:
        if not self._answers:
            return
        form = self._forms.of_classes(self._answers)
        options = QuestionOptions.of(event, awaited=self._answers[0], now=self._now())
        content = f"{options.prompt_type} {json.dumps(options.prompt, sort_keys=True)}"
        key = content, self._taken
        question_id = ""
        while not question_id or (question_id in self._open and self._open[question_id] is None):
            # The same question, asked several times, is several questions.
            number = self._streamed.get(key, 0)
            question_id = self._id(_OF_STREAM, content, str(self._taken), str(number))
            self._streamed[key] = number + 1
        self._open[question_id] = AskedQuestion(
            question_id=question_id,
            event_types=form.event_types,
            answer_schema=form.schema,
            check=form.check,
            prompt=options.prompt,
            prompt_type=options.prompt_type,
            deadline=options.deadline,
            default=options.default,
            assignee=options.assignee,
            tags=options.tags,
        )

    def _id(self, kind: str, *parts: str) -> str:
        text = "\0".join((self._task_id, *parts))
        return f"{kind}-{blake2b(text.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


class _Reporting:
    """What the control plane knows, and what it is told next.

    Args:
        known: The questions that are open according to the control plane.
    """

    def __init__(self, known: Collection[str]) -> None:
        self.waits = False
        self.rejected: list[str] = []
        self.answered: set[str] = set()
        self.inherited = set(known)
        """Those of earlier attempts that the run may still come to: it has steps that run again."""
        self._known = set(known)
        self._told: tuple[bool, int] = (False, 0)
        self._number = 0

    def knows(self, question_id: str) -> bool:
        """Whether the control plane has an open question."""
        return question_id in self._known

    def count_new(self, questions: Mapping[str, AskedQuestion | None]) -> int:
        """Return how many questions the control plane does not have."""
        return sum(each is not None and name not in self._known for name, each in questions.items())

    def next(self, questions: Mapping[str, AskedQuestion | None], inbox_seq: int) -> WaitReport | None:
        """See `OpenQuestions.report`. Reports with the same number may differ until one is stored."""
        state = (self.waits, inbox_seq if self.waits else 0)
        if not (questions or self._known or self.rejected) and state == self._told:
            return None  # as with every run that asks nothing
        new = (each for name, each in questions.items() if name not in self._known and each is not None)
        asked = list(islice(new, MAX_REPORTED))
        closed = [name for name in self._known if name not in questions and name not in self.inherited]
        if not (asked or closed or self.rejected) and state == self._told:
            return None
        return WaitReport(
            number=self._number + 1,
            waits=self.waits,
            inbox_seq=inbox_seq,
            asked=asked,
            closed=closed,
            answered=[name for name in closed if name in self.answered],
            rejected=list(self.rejected),
        )

    def stored(self, report: WaitReport) -> None:
        """See `OpenQuestions.stored`."""
        self._number = report.number
        self._told = (report.waits, report.inbox_seq if report.waits else 0)
        self._known.update(each.question_id for each in report.asked)
        self._known.difference_update(report.closed)
        self.answered.difference_update(report.closed)
        del self.rejected[: len(report.rejected)]


def _as_json(requirements: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return requirements as JSON. None: they are not JSON."""
    plain = all(value is None or type(value) in (str, int, float, bool) for value in requirements.values())
    return dict(requirements) if plain else None
