"""What a run reports of its questions, and how an answer reaches only one of them."""

# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

from typing import Any

from workflows import Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.services.run.inbox.asked_counts import AskedCounts
from llama_deploy.services.run.inbox.offers import Offer, Offers
from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.questions import Questions
from llama_deploy.services.values.answer_forms import AnswerForms
from llama_deploy.types.questions import WaitReport
from llama_deploy.workflow_library import (
    AddWaiter,
    DeleteWaiter,
    StepId,
    StepWorkerResult,
    TickAddEvent,
    TickStepResult,
    address_of,
    address_of_wait,
)

NOW = 1_800_000_000.0


class Ask(InputRequiredEvent):
    text: str


class Reply(HumanResponseEvent):
    text: str


class Flow(Workflow):
    @step
    async def first(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


class Run:
    """Questions of a run, and what it is told of the library's ticks."""

    def __init__(self, *, known: list[str] | None = None, begins_again: bool = False) -> None:
        self.open = OpenQuestions(
            "t",
            forms=AnswerForms([Reply]),
            answers=[Reply],
            now=lambda: NOW,
            known=known or [],
            begins_again=begins_again,
        )
        self.questions = Questions(Flow(), self.open)
        self.offers = Offers(self.questions, ids=self.open)

    def ask(self, waiter_id: str, *, text: str = "?", event: Event | None = None) -> None:
        add: AddWaiter[Any] = AddWaiter(
            waiter_id=waiter_id,
            waiter_event=Ask(text=text),
            requirements={},
            timeout=None,
            event_type=Reply,
        )
        self.tick(event or StartEvent(), add)

    def end(self, waiter_id: str, event: Event | None = None) -> None:
        self.tick(event or StartEvent(), DeleteWaiter(waiter_id=waiter_id), StepWorkerResult(result=None))

    def tick(self, event: Event, *results: Any) -> None:
        tick = TickStepResult(
            step_id=StepId.from_str("first"), worker_id=0, event=event, result=list(results), stamped_at=NOW
        )
        self.open.on_tick(tick)
        self.questions.on_tick(tick)

    def send(self, event: Event) -> None:
        self.questions.on_tick(TickAddEvent(event=event))

    def report(self) -> WaitReport:
        report = self.open.report()
        assert report is not None
        self.open.stored(report)
        return report


def ids(run: Run) -> dict[str, str]:
    return {each.prompt["text"]: each.question_id for each in run.report().asked}


def test_a_run_that_asks_nothing_reports_nothing() -> None:
    run = Run()
    run.tick(StartEvent(), StepWorkerResult(result=StopEvent()))
    run.open.on_seen(7)
    assert run.open.report() is None


def test_only_changes_are_reported() -> None:
    run = Run()
    run.ask("a", text="a")
    run.ask("b", text="b")
    first = run.report()
    assert [each.prompt["text"] for each in first.asked] == ["a", "b"]
    assert (first.number, first.waits, first.closed) == (1, False, [])
    assert run.open.report() is None
    run.send(Reply(text="x"))
    second = run.report()
    assert (second.number, second.asked) == (2, [])
    assert (
        sorted(second.closed) == sorted(second.answered) == sorted(each.question_id for each in first.asked)
    )
    assert run.open.report() is None


def test_a_report_that_was_not_stored_comes_again() -> None:
    run = Run()
    run.ask("a")
    lost = run.open.report()
    run.ask("b")
    found = run.report()
    assert lost is not None
    assert (lost.number, len(lost.asked)) == (1, 1)
    assert (found.number, len(found.asked)) == (1, 2)


def test_waiting_is_reported_with_what_the_run_has_seen() -> None:
    run = Run()
    run.open.on_waiting()
    assert (run.report().waits, run.open.report()) == (True, None)
    run.open.on_seen(1)
    assert run.report().inbox_seq == 1
    run.open.on_working()
    assert not run.report().waits


def test_ids_are_the_same_in_another_attempt_and_differ_within_one() -> None:
    found = []
    for run in (Run(), Run(begins_again=True)):
        run.ask("mine", text="1")
        run.ask("other", text="2")
        asked = ids(run)
        run.end("mine")
        run.ask("mine", text="3")
        found.append(asked | ids(run))
    assert found[0] == found[1]
    assert len(set(found[0].values())) == 3, "asked again under a name, it is another question"


def test_counts_of_a_snapshot_continue() -> None:
    run = Run()
    run.ask("mine")
    first = run.report().asked[0].question_id
    run.end("mine")
    later = Run()
    later.open.resume(AskedCounts.restore(run.open.counts.all()))
    later.ask("mine")
    assert later.report().asked[0].question_id != first
    same = Run()
    same.ask("mine")
    assert same.report().asked[0].question_id == first


def test_questions_of_earlier_attempts_are_withdrawn_when_the_run_waits_without_them() -> None:
    before = Run()
    before.ask("a", text="a")
    before.ask("b", text="b")
    known = ids(before)
    run = Run(known=list(known.values()), begins_again=True)
    assert run.open.report() is None
    run.ask("a", text="a")
    assert run.open.report() is None, "it is known"
    run.open.on_waiting()
    assert run.report().closed == [known["b"]]


def test_equal_streamed_questions_are_several() -> None:
    run = Run()
    for _ in range(2):
        run.open.on_event(Ask(text="go?"))
    first, second = run.report().asked
    assert first.question_id != second.question_id
    run.open.on_taken(first.question_id)
    run.open.on_event(Ask(text="go?"))
    report = run.report()
    assert report.closed == report.answered == [first.question_id]
    assert report.asked[0].question_id not in {first.question_id, second.question_id}


def test_an_answer_is_for_the_wait_that_asked() -> None:
    run = Run()
    run.ask("a", text="a")
    run.ask("b", text="b")
    wanted = ids(run)["b"]
    reply = Reply(text="x")
    run.offers.add(Offer(1, reply, wanted))
    assert run.offers.take() is not None
    run.offers.before_tick()
    assert address_of(reply) == address_of_wait("first", "b")
    run.send(reply)
    assert (run.questions.waits_for("first", "a"), run.questions.waits_for("first", "b")) == (True, False)


def test_an_answer_is_addressed_if_others_ask_after_it_was_offered() -> None:
    run = Run()
    run.ask("a", text="a")
    reply = Reply(text="x")
    run.offers.add(Offer(1, reply, ids(run)["a"]))
    assert run.offers.take() is not None
    run.offers.before_tick()
    assert address_of(reply) is None
    run.ask("b", text="b")
    run.offers.before_tick()
    assert address_of(reply) == address_of_wait("first", "a")


def test_an_answer_waits_until_its_question_is_asked() -> None:
    run = Run()
    run.ask("a", text="a")
    known = ids(run)
    again = Run(known=list(known.values()), begins_again=True)
    again.offers.add(Offer(1, Reply(text="x"), known["a"]))
    assert again.offers.take() is None
    again.ask("b", text="b")
    assert again.offers.take() is None
    again.ask("a", text="a")
    assert again.offers.take() is not None
