"""A task's inbox and the run that it belongs to, with the real library."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from workflows import Context, Workflow, catch_error, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StepFailedEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.inbox.run_inbox import EntrySequence, RunInbox
from llama_deploy.services.run.run_observer import RunHooks
from llama_deploy.services.run.steps.step_guard import guard_steps
from llama_deploy.services.run.workflow_run import RunLimits, WorkflowRun
from llama_deploy.services.values.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.values.run_arguments import RunCall
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import InboxEntry


class Reply(HumanResponseEvent):
    text: str
    to: str = ""


class Other(HumanResponseEvent):
    text: str


class Urgent(Reply):
    """The library tells it apart from its base."""


class Next(Event):
    heard: list[str]


class TwoQuestions(Workflow):
    """Two steps, one after the other, wait for the same class of event."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.gate = asyncio.Event()

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Next:
        await self.gate.wait()
        heard = (await ctx.wait_for_event(Reply)).text
        for _ in range(50):
            await asyncio.sleep(0)  # Long enough for a second answer to come in between, if it may.
        return Next(heard=[heard])

    @step
    async def second(self, ctx: Context, ev: Next) -> StopEvent:
        return StopEvent(result=[*ev.heard, (await ctx.wait_for_event(Reply)).text])


class Selective(Workflow):
    """One step waits for two answers that it tells apart, the later one first."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.gate = asyncio.Event()

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Next:
        await self.gate.wait()
        heard = [(await ctx.wait_for_event(Reply, requirements={"to": name})).text for name in ("b", "a")]
        return Next(heard=heard)

    @step
    async def second(self, ctx: Context, ev: Next) -> StopEvent:
        return StopEvent(result=ev.heard)


class Listener(Workflow):
    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> None:
        await ctx.store.set("heard", [])

    @step(num_workers=1)
    async def hear(self, ctx: Context, ev: Reply) -> StopEvent | None:
        heard = [*await ctx.store.get("heard"), ev.text]
        await ctx.store.set("heard", heard)
        return StopEvent(result=heard) if ev.text == "end" else None


class Retries(Workflow):
    """Its step fails once after it has got its answer; another takes all answers."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.tried: list[str] = []

    @step(retry_policy=retry_policy(wait=wait_fixed(0.2), stop=stop_after_attempt(3)))
    async def pay(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.tried.append((await ctx.wait_for_event(Reply)).text)
        if len(self.tried) == 1:
            raise ConnectionError("the bank is busy")
        return StopEvent(result=self.tried)

    @step
    async def note(self, ctx: Context, ev: Reply) -> None:
        """Let the library have a use for a second answer."""


class Form(Workflow):
    """A step asks twice, and the next one asks the first question again."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.begun = 0

    @step
    async def fill(self, ctx: Context, ev: StartEvent) -> Next:
        self.begun += 1
        questions = ({"to": "approval"}, {"to": "address"})
        return Next(heard=[(await ctx.wait_for_event(Reply, requirements=each)).text for each in questions])

    @step
    async def check(self, ctx: Context, ev: Next) -> StopEvent:
        again = await ctx.wait_for_event(Reply, requirements={"to": "approval"})
        return StopEvent(result=[*ev.heard, again.text])


class Colleagues(Workflow):
    """Two steps begin with the same event, of which one waits in its middle; another takes all answers."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()
        self.watched = asyncio.Event()
        self.charged: list[str] = []

    @step
    async def charge(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.asked.set()
        self.charged.append((await ctx.wait_for_event(Reply)).text)
        await self.gate.wait()
        return StopEvent(result=self.charged)

    @step
    async def watch(self, ctx: Context, ev: StartEvent) -> None:
        await self.watched.wait()

    @step
    async def answer(self, ctx: Context, ev: Other) -> None:
        """Answer in place of a person."""
        ctx.send_event(Reply(text=ev.text))

    @step
    async def note(self, ctx: Context, ev: Reply) -> None:
        """Let the library have a use for a second answer."""


class Recovers(Workflow):
    """Its first step fails for good after it has got its answer."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.tried: list[str] = []

    @step
    async def pay(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.tried.append((await ctx.wait_for_event(Reply)).text)
        raise ConnectionError("the bank is closed")

    @catch_error(for_steps=["pay"])
    async def recover(self, ctx: Context, ev: StepFailedEvent) -> Next:
        return Next(heard=[])

    @step
    async def second(self, ctx: Context, ev: Next) -> StopEvent:
        return StopEvent(result=(await ctx.wait_for_event(Other)).text)


class RecoversAndHears(Recovers):
    @step
    async def hear(self, ctx: Context, ev: Reply) -> StopEvent | None:
        return StopEvent(result=f"heard {ev.text}") if ev.text == "b" else None


class Patient(Workflow):
    """One step is at its second question; another takes a kind of what answers the first."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.begun = 0

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> None:
        self.begun += 1
        await ctx.wait_for_event(Reply)
        await ctx.wait_for_event(Other)

    @step
    async def hear(self, ctx: Context, ev: Urgent) -> StopEvent:
        return StopEvent(result=ev.text)


class Hurried(Workflow):
    """The time for an answer that has come runs out while the step is at its next question."""

    def __init__(self) -> None:
        super().__init__(timeout=10)
        self.begun = 0
        self.asked = asyncio.Event()
        self.late = asyncio.Event()

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.begun += 1
        self.asked.set()
        heard = (await ctx.wait_for_event(Reply, timeout=0.5)).text
        return StopEvent(result=[heard, (await ctx.wait_for_event(Other, timeout=None)).text])

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> None:
        await asyncio.Event().wait()

    @step
    async def watch(self, ctx: Context, ev: StartEvent) -> None:
        try:
            await ctx.wait_for_event(Next, timeout=0.6)
        except TimeoutError:
            self.late.set()


def entry(seq: int, text: str, *, cls: str = "Reply", **fields: Any) -> InboxEntry:
    body = EventDefinition.model_validate(
        {"event_obj_str": f'{{"type": "{cls}", "value": {{"text": "{text}"{_more(fields)}}}}}'}
    )
    return InboxEntry(task_id="task", seq=seq, event=body)


def _more(fields: dict[str, Any]) -> str:
    return "".join(f', "{name}": "{value}"' for name, value in fields.items())


class Hosted:
    """A run with its inbox."""

    def __init__(self, workflow: Workflow, *, entries: Sequence[InboxEntry] = (), seen: int = 0) -> None:
        guard_steps(workflow)
        host_runs(workflow)
        self.seen: list[int] = []
        self.inbox = RunInbox(
            task_id="task",
            workflow=workflow,
            registry=EventRegistry(workflow, [Reply, Other]),
            on_seen=self.seen.append,
            entries=entries,
            seen=seen,
        )
        self.workflow_run = WorkflowRun(
            workflow,
            start=partial(RunCall.prepare(workflow, {}).start, None),
            inbox=self.inbox,
            hooks=RunHooks(
                on_event=_ignore, on_waiting=lambda: None, on_working=lambda: None, hold_lease=_hold
            ),
            label="the run",
            limits=RunLimits(timeout=10),
        )

    async def run(self) -> Any:
        ending = await self.workflow_run.execute()
        assert ending is not None
        assert ending.error is None
        return ending.value

    async def until_waiting(self) -> None:
        await eventually(lambda: self.workflow_run.clock.is_waiting)

    async def put(self, *entries: InboxEntry) -> None:
        for item in entries:
            await self.inbox.put(item)


async def brief_moment() -> None:
    """Long enough for a step to begin, if it may."""
    for _ in range(50):
        await asyncio.sleep(0)


async def _hold() -> None:
    """The lease is always there."""


async def _ignore(event: StreamedEvent) -> None:
    """No test looks at the stream."""


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
async def test_entries_are_heard_once_and_in_order(order: tuple[int, ...]) -> None:
    hosted = Hosted(Listener(timeout=10))
    entries = {1: entry(1, "a"), 2: entry(2, "b"), 3: entry(3, "end")}
    await hosted.put(*(entries[seq] for seq in order), *entries.values())
    assert await hosted.run() == ["a", "b", "end"]
    assert hosted.seen[-1] == 3


def test_entries_wait_behind_a_gap_while_there_is_room() -> None:
    sequence = EntrySequence(seen=1)
    assert sequence.add(entry(3, "c"), room=1) == []
    assert sequence.add(entry(4, "d"), room=1) == [], "there is no room, so it must come again"
    assert [each.seq for each in sequence.add(entry(2, "b"), room=2)] == [2, 3]
    assert sequence.seen == 3
    assert [each.seq for each in sequence.add(entry(4, "d"), room=1)] == [4]
    assert sequence.add(entry(4, "d"), room=1) == [], "it was seen before"


@pytest.mark.parametrize("early", [True, False])
async def test_two_early_answers_reach_two_questions(early: bool) -> None:  # noqa: FBT001
    workflow = TwoQuestions()
    hosted = Hosted(workflow)
    if early:
        await hosted.put(entry(1, "a"), entry(2, "b"))
    running = asyncio.create_task(hosted.run())
    if not early:
        await hosted.put(entry(1, "a"), entry(2, "b"))
    workflow.gate.set()
    assert await running == ["a", "b"]


async def test_early_answers_find_the_question_that_they_fit() -> None:
    workflow = Selective()
    hosted = Hosted(workflow)
    await hosted.put(entry(1, "to a", to="a"), entry(2, "to b", to="b"))
    running = asyncio.create_task(hosted.run())
    workflow.gate.set()
    assert await running == ["to b", "to a"]


async def test_an_answer_nobody_wants_does_not_hold_up_the_others() -> None:
    workflow = TwoQuestions()
    hosted = Hosted(workflow)
    await hosted.put(entry(1, "never", cls="Other"), entry(2, "a"), entry(3, "b"))
    running = asyncio.create_task(hosted.run())
    workflow.gate.set()
    assert await running == ["a", "b"]


async def test_what_was_taken_is_told_once_and_what_was_not_is_kept() -> None:
    workflow = TwoQuestions()
    hosted = Hosted(workflow)
    await hosted.put(
        entry(1, "never", cls="Other"), entry(2, "a"), entry(3, "b"), entry(4, "broken", cls="No")
    )
    workflow.gate.set()
    await hosted.run()
    assert sorted(hosted.inbox.take_consumed()) == [2, 3, 4]
    assert hosted.inbox.take_consumed() == []


async def test_an_inbox_continues_after_what_earlier_attempts_have_taken() -> None:
    hosted = Hosted(Listener(timeout=10), entries=[entry(2, "a")], seen=3)
    await hosted.put(entry(3, "taken before"), entry(4, "end"))
    assert await hosted.run() == ["a", "end"]
    assert hosted.seen[-1] == 4


async def test_a_second_answer_does_not_run_a_step_that_is_about_to_be_tried_again() -> None:
    workflow = Retries()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await hosted.until_waiting()
    await hosted.put(entry(1, "a"))
    await eventually(lambda: bool(workflow.tried))
    await hosted.put(entry(2, "b"))
    assert await running == ["a", "a"]
    assert hosted.inbox.take_consumed() == [1]


async def test_the_first_answer_counts_when_the_step_is_at_its_next_question() -> None:
    workflow = Form()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await hosted.put(entry(1, "yes", to="approval"))
    await eventually(lambda: workflow.begun == 2 and hosted.workflow_run.clock.is_waiting)
    await hosted.put(entry(2, "no", to="approval"))
    await brief_moment()
    assert workflow.begun == 2
    assert hosted.inbox.is_quiet
    await hosted.put(entry(3, "home", to="address"))
    assert await running == ["yes", "home", "no"]
    assert hosted.inbox.take_consumed() == [1, 3, 2]


async def test_a_step_that_began_with_the_same_event_does_not_end_the_work_on_an_answer() -> None:
    workflow = Colleagues()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await workflow.asked.wait()
    await brief_moment()
    await hosted.put(entry(1, "a"))
    await eventually(lambda: bool(workflow.charged))
    workflow.watched.set()
    await brief_moment()
    await hosted.put(entry(2, "b"))
    await brief_moment()
    workflow.gate.set()
    assert await running == ["a"]


async def test_a_second_answer_is_kept_also_if_a_step_has_given_the_first() -> None:
    workflow = Colleagues()
    hosted = Hosted(workflow)
    workflow.watched.set()
    running = asyncio.create_task(hosted.run())
    await hosted.until_waiting()
    await hosted.put(entry(1, "a", cls="Other"))
    await eventually(lambda: bool(workflow.charged))
    await hosted.put(entry(2, "b"))
    await brief_moment()
    workflow.gate.set()
    assert await running == ["a"]


async def test_a_second_answer_does_not_run_a_step_that_has_failed_for_good() -> None:
    workflow = Recovers()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await hosted.put(entry(1, "a"))
    await eventually(lambda: bool(workflow.tried) and hosted.workflow_run.clock.is_waiting)
    await hosted.put(entry(2, "b"))
    await brief_moment()
    await hosted.put(entry(3, "end", cls="Other"))
    assert await running == "end"
    assert workflow.tried == ["a"]


async def test_what_a_step_takes_is_not_kept_for_one_that_has_failed_for_good() -> None:
    workflow = RecoversAndHears()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await hosted.until_waiting()
    await hosted.put(entry(1, "a"))
    await eventually(lambda: bool(workflow.tried) and hosted.workflow_run.clock.is_waiting)
    await hosted.put(entry(2, "b"))
    assert await running == "heard b"


async def test_what_is_no_answer_to_the_library_is_not_kept_as_one() -> None:
    workflow = Patient()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await hosted.put(entry(1, "a"))
    await eventually(lambda: workflow.begun == 2 and hosted.workflow_run.clock.is_waiting)
    await hosted.put(entry(2, "at once", cls="Urgent"))
    assert await running == "at once"


async def test_the_end_of_the_time_for_an_answer_that_has_come_changes_nothing() -> None:
    workflow = Hurried()
    hosted = Hosted(workflow)
    running = asyncio.create_task(hosted.run())
    await workflow.asked.wait()
    await brief_moment()
    await hosted.put(entry(1, "a"))
    await workflow.late.wait()
    await hosted.put(entry(2, "b", cls="Other"))
    assert await running == ["a", "b"]
    assert workflow.begun == 3
