"""A task's inbox and the run that it belongs to, with the real library."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent

from llama_deploy.services.arguments import RunCall
from llama_deploy.services.guard import guard_steps
from llama_deploy.services.hosting import host_runs
from llama_deploy.services.mailbox import Mailbox
from llama_deploy.services.payloads import EventRegistry, StreamedEvent
from llama_deploy.services.runs import RunLimits, WorkflowRun
from llama_deploy.types import EventDefinition
from llama_deploy.types.attempts import InboxEntry


class Reply(HumanResponseEvent):
    text: str
    to: str = ""


class Other(HumanResponseEvent):
    text: str


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


def entry(seq: int, text: str, *, cls: str = "Reply", **fields: Any) -> InboxEntry:
    body = EventDefinition.model_validate(
        {"event_obj_str": f'{{"type": "{cls}", "value": {{"text": "{text}"{_more(fields)}}}}}'}
    )
    return InboxEntry(task_id="task", seq=seq, event=body)


def _more(fields: dict[str, Any]) -> str:
    return "".join(f', "{name}": "{value}"' for name, value in fields.items())


class Hosted:
    """A run with its mailbox."""

    def __init__(self, workflow: Workflow) -> None:
        guard_steps(workflow)
        host_runs(workflow)
        self.seen: list[int] = []
        self.mailbox = Mailbox(
            task_id="task",
            registry=EventRegistry(workflow, [Reply, Other]),
            on_seen=self.seen.append,
        )
        self.workflow_run = WorkflowRun(
            workflow=workflow,
            start=partial(RunCall.prepare(workflow, {}).start, None),
            mailbox=self.mailbox,
            on_event=_ignore,
            label="the run",
            limits=RunLimits(timeout=10),
            on_waiting=lambda: None,
            hold_lease=_hold,
        )

    async def run(self) -> Any:
        ending = await self.workflow_run.execute()
        assert ending is not None
        assert ending.error is None
        return ending.value

    async def put(self, *entries: InboxEntry) -> None:
        for item in entries:
            if self.mailbox.put(item):
                await self.mailbox.deliver()


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
    assert sorted(hosted.mailbox.take_consumed()) == [2, 3, 4]
    assert hosted.mailbox.take_consumed() == []


async def test_a_mailbox_goes_on_after_what_earlier_attempts_have_taken() -> None:
    hosted = Hosted(Listener(timeout=10))
    hosted.mailbox.fill([entry(2, "a")], seen=3)
    await hosted.put(entry(3, "taken before"), entry(4, "end"))
    assert await hosted.run() == ["a", "end"]
    assert hosted.seen[-1] == 4
