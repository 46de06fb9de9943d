"""What a run knows of its questions is what a look at all of them would say."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from workflows import Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.services.run.inbox.offers import Offer, Offers
from llama_deploy.services.run.inbox.questions import Questions
from llama_deploy.workflow_library import (
    AddWaiter,
    DeleteWaiter,
    StepId,
    StepWorkerResult,
    TickAddEvent,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
)


class Answer(HumanResponseEvent):
    value: Any


class Asking(Workflow):
    @step
    async def first(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

    @step
    async def second(self, ev: Answer) -> None:
        """Begin with an answer."""


@dataclass
class Model:
    """Looks at all questions."""

    asked: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    working: list[tuple[str, Event]] = field(default_factory=list)

    def on_tick(self, tick: WorkflowTick) -> None:
        if isinstance(tick, TickAddEvent):
            for question in self.taking(tick.event):
                question["open"] = False
                self.working.append(question["branch"])
        elif isinstance(tick, TickWaiterTimeout):
            late = self.asked.get((str(tick.step_id), tick.waiter_id))
            if late and late["open"]:
                late["open"] = False
                self.working.append(late["branch"])
        elif isinstance(tick, TickStepResult):
            branch = (str(tick.step_id), tick.event)
            place = next((n for n, each in enumerate(self.working) if self.is_same(each, branch)), None)
            if place is not None:
                del self.working[place]
            for result in tick.result:
                if isinstance(result, AddWaiter):
                    self.asked[branch[0], result.waiter_id] = {
                        "branch": branch,
                        "requirements": result.requirements,
                        "open": True,
                    }
                elif isinstance(result, DeleteWaiter):
                    self.asked.pop((branch[0], result.waiter_id), None)

    def taking(self, event: Event) -> list[dict[str, Any]]:
        return [
            each
            for each in self.asked.values()
            if type(event) is Answer
            and all(getattr(event, name) == value for name, value in each["requirements"].items())
        ]

    def wants(self, event: Event) -> bool:
        matching = self.taking(event)
        if any(self.is_same(busy, each["branch"]) for each in matching for busy in self.working):
            return False
        if not matching or any(each["open"] for each in matching):
            return True
        asks_again = any(
            other["open"] and self.is_same(other["branch"], each["branch"])
            for each in matching
            for other in self.asked.values()
        )
        return not asks_again and all(each["branch"][0] != "second" for each in matching)

    @staticmethod
    def is_same(one: tuple[str, Event], other: tuple[str, Event]) -> bool:
        return one[0] == other[0] and one[1] is other[1]


BEGUN = [Event(number=number) for number in range(3)]
ANSWERS = [Answer(value=value) for value in (1, 2, [3])]
steps = st.sampled_from([StepId.from_str(name) for name in ("first", "second")])
names = st.sampled_from(["a", "b", "c"])
questions: st.SearchStrategy[AddWaiter[Answer]] = st.builds(
    AddWaiter,
    waiter_id=names,
    timeout=st.none(),
    event_type=st.just(Answer),
    requirements=st.sampled_from([{}, {"value": 1}, {"value": 2}, {"value": [3]}]),
)
ends = st.builds(lambda name: [DeleteWaiter(waiter_id=name), StepWorkerResult(result=None)], names)
results = st.builds(
    TickStepResult,
    step_id=steps,
    worker_id=st.just(0),
    event=st.sampled_from(BEGUN),
    result=st.one_of(ends, st.lists(questions, min_size=1, max_size=1)),
)
arrivals = st.builds(TickAddEvent, event=st.sampled_from([*ANSWERS, Event()]))
late = st.builds(TickWaiterTimeout, step_id=steps, waiter_id=names)


@given(st.lists(st.one_of(results, arrivals, late), max_size=20))
@settings(max_examples=400)
def test_a_run_wants_what_a_look_at_all_questions_would_say(ticks: list[WorkflowTick]) -> None:
    known, model = Questions(Asking()), Model()
    waiting = {id(answer): Offers(known) for answer in ANSWERS}
    for answer in ANSWERS:
        waiting[id(answer)].add(Offer(1, answer))
    for tick in ticks:
        known.on_tick(tick)
        model.on_tick(tick)
        assert known.is_any_open == any(each["open"] for each in model.asked.values())
        for answer in ANSWERS:
            assert known.wants(answer) == model.wants(answer)
            assert known.is_asked_for(answer) == any(each["open"] for each in model.taking(answer))
            assert waiting[id(answer)].is_quiet != model.wants(answer), "it was not noticed"


def offers_of(*values: int, last: int = 0) -> tuple[Questions, Offers]:
    known = Questions(Asking())
    offers = Offers(known, last_earlier=last)
    for seq, value in enumerate(values, 1):
        offers.add(Offer(seq, Answer(value=value)))
    return known, offers


def ask(known: Questions, value: int) -> None:
    waiter: AddWaiter[Answer] = AddWaiter(
        waiter_id="w", timeout=None, event_type=Answer, requirements={"value": value}
    )
    known.on_tick(
        TickStepResult(step_id=StepId.from_str("first"), worker_id=0, event=BEGUN[0], result=[waiter])
    )


def offered(offers: Offers) -> Offer:
    offer = offers.take()
    assert offer is not None
    assert offers.current is offer
    return offer


def taken(offers: Offers) -> int:
    """Offer the next event, which a step takes, and return its number."""
    offer = offered(offers)
    offers.came_to(offer.event)
    assert offers.settle() is offer
    assert not offer.was_dropped
    return offer.seq


def dropped(offers: Offers) -> int:
    """Offer the next event, which no step takes, and return its number."""
    offer = offered(offers)
    offers.came_to(offer.event)
    offers.not_taken()
    assert offers.settle() is offer
    assert offer.was_dropped
    return offer.seq


def test_what_was_dropped_is_offered_again_in_its_order_when_it_is_asked_for() -> None:
    known, offers = offers_of(1, 2, 2, 3)
    assert [dropped(offers) for _ in range(3)] == [1, 2, 3]
    assert len(offers) == 4
    offers.offer_again()
    assert taken(offers) == 4, "nobody asks for the others"
    ask(known, 2)
    offers.offer_again()
    assert [taken(offers), taken(offers)] == [2, 3]
    assert len(offers) == 1
    assert not offers


def test_what_was_dropped_once_may_be_taken_when_it_is_offered_again() -> None:
    known, offers = offers_of(2)
    assert dropped(offers) == 1
    ask(known, 2)
    offers.offer_again()
    assert taken(offers) == 1
    assert len(offers) == 0


def test_one_event_is_offered_until_the_run_has_come_to_it() -> None:
    _, offers = offers_of(1, 2)
    first = offered(offers)
    assert offers.take() is None
    assert not offers.is_quiet
    offers.came_to(Answer(value=1))
    assert offers.settle() is None, "another event that looks like it"
    offers.not_taken()
    offers.came_to(first.event)
    assert offers.settle() is first
    assert not first.was_dropped, "the event that no step took was the other one"
    assert taken(offers) == 2
    assert offers.is_quiet


def test_each_answer_to_an_earlier_attempt_waits_until_the_run_asks_again() -> None:
    _, offers = offers_of(1, 2, 3, last=2)
    assert offers.take() is None
    offers.asked()
    assert taken(offers) == 1
    assert offers.take() is None, "each answers one question"
    offers.asked()
    assert taken(offers) == 2
    assert taken(offers) == 3, "it has come since"
