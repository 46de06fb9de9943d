"""Workflows that fail until they are repaired, and what tests do with their ended tasks."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.errors import RetryRefusedError
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import TaskStatus, TaskView
from llama_deploy.types.retries import TaskRetry
from llama_deploy.types.task_lists import EndedStep
from tests.integration.in_process import Stack

KEYS = [SecretStr("a key of sixteen")]


class Second(Event):
    number: int


class Third(Event):
    number: int


class Fourth(Event):
    number: int


class Last(Event):
    pass


class Part(Event):
    number: int


class Done(Event):
    number: int


class Answer(HumanResponseEvent):
    text: str


class Ask(InputRequiredEvent):
    question: str


class FourSteps(Workflow):
    """Its first steps add to counters in `ctx.store`; the fourth fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun: Counter[str] = Counter()
        self.is_repaired = False
        self.paddings: Iterator[str] = repeat("")
        """What the next values of the state begin with."""
        self.gate = asyncio.Event()
        """The repaired step waits for it. It is set."""
        self.gate.set()

    async def count(self, ctx: Context, name: str) -> None:
        self.begun[name] += 1
        await ctx.store.set("first key", self.begun.total())
        await ctx.store.set("counts", [*await ctx.store.get("counts", []), name])
        await ctx.store.set("text", next(self.paddings) + name)
        await ctx.store.set(name, 1 + await ctx.store.get(name, 0))

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        await self.count(ctx, "first")
        return Second(number=int(ev.get("number", 1)))

    @step
    async def second(self, ctx: Context, ev: Second) -> Third:
        await self.count(ctx, "second")
        return Third(number=ev.number + 1)

    @step
    async def third(self, ctx: Context, ev: Third) -> Fourth:
        await self.count(ctx, "third")
        return Fourth(number=ev.number + 1)

    @step
    async def fourth(self, ctx: Context, ev: Fourth) -> StopEvent:
        await self.count(ctx, "fourth")
        if not self.is_repaired:
            raise ValueError("not repaired yet")
        await self.gate.wait()
        counts = await ctx.store.get("counts")
        return StopEvent(result=[ev.number, counts, [await ctx.store.get(name) for name in counts]])


ALL = ["first", "second", "third", "fourth"]
ONCE_EACH = [3, ALL, [1, 1, 1, 1]]


class Renamed(FourSteps):
    """A version in which the fourth step has another name."""

    fourth = None  # type: ignore[assignment]

    @step
    async def last(self, ev: Fourth) -> StopEvent:
        self.begun["last"] += 1
        return StopEvent(result=ev.number)


class AsksTwice(Workflow):
    """Asks for two names, one after the other."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.is_repaired = False

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Second:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="first?"), waiter_id="first")
        await ctx.store.set("first", answer.text)
        return Second(number=1)

    @step
    async def ask_again(self, ctx: Context, ev: Second) -> StopEvent:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="second?"), waiter_id="second")
        if not self.is_repaired:
            raise ValueError(answer.text)
        return StopEvent(result=[await ctx.store.get("first"), answer.text])


class Approved(Workflow):
    """Asks twice, and notes in its state what it does; its last step fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.is_repaired = False
        self.taken: list[str] = []

    async def note(self, ctx: Context, word: str) -> None:
        await ctx.store.set("words", [*await ctx.store.get("words", []), word])

    @step
    async def plan(self, ctx: Context, ev: StartEvent) -> Second:
        await self.note(ctx, "plan")
        return Second(number=1)

    @step
    async def approve_plan(self, ctx: Context, ev: Second) -> Third:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="plan?"), waiter_id="plan")
        self.taken.append(answer.text)
        await self.note(ctx, answer.text)
        return Third(number=2)

    @step
    async def draft(self, ctx: Context, ev: Third) -> Fourth:
        await self.note(ctx, "draft")
        return Fourth(number=3)

    @step
    async def approve_draft(self, ctx: Context, ev: Fourth) -> Last:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question="draft?"), waiter_id="draft")
        self.taken.append(answer.text)
        await self.note(ctx, answer.text)
        return Last()

    @step
    async def publish(self, ctx: Context, ev: Last) -> StopEvent:
        await self.note(ctx, "publish")
        if not self.is_repaired:
            raise ValueError("not repaired yet")
        return StopEvent(result=await ctx.store.get("words"))


class FansOut(Workflow):
    """Eight parts end at once; the last one fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.begun: Counter[int] = Counter()
        self.is_repaired = False
        self.barrier = asyncio.Barrier(8)

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        for number in range(8):
            ctx.send_event(Part(number=number))
        return None

    @step(num_workers=8)
    async def work(self, ctx: Context, ev: Part) -> Done:
        self.begun[ev.number] += 1
        if not self.is_repaired:
            await self.barrier.wait()
            if ev.number == 7:
                raise ValueError("the last one")
        return Done(number=ev.number)

    @step
    async def collect(self, ctx: Context, ev: Done) -> StopEvent | None:
        done = ctx.collect_events(ev, [Done] * 8)
        return None if done is None else StopEvent(result=sorted(each.number for each in done))


class Live:
    """A value that cannot be stored."""


class Volatile(Workflow):
    """Keeps such a value, and fails."""

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        await ctx.store.set("live", Live())
        return Second(number=1)

    @step
    async def second(self, ctx: Context, ev: Second) -> StopEvent:
        raise ValueError("always")


async def retry(stack: Stack, ended: str, /, origin: str = "last_step", **fields: Any) -> TaskRecord:
    return await stack.plane.retries.retry(ended, TaskRetry(origin=origin, **fields))


async def end_of_retry(stack: Stack, ended: str, /, origin: str = "last_step", **fields: Any) -> TaskView:
    return await stack.end((await retry(stack, ended, origin, **fields)).task_id)


async def refused(stack: Stack, ended: str, /, origin: str = "last_step", **fields: Any) -> tuple[str, str]:
    with pytest.raises(RetryRefusedError) as caught:
        await retry(stack, ended, origin, **fields)
    return caught.value.reason or "", str(caught.value)


async def failed(stack: Stack, **arguments: Any) -> str:
    view = await stack.run("service", **arguments)
    assert view.status is TaskStatus.FAILED, view
    return view.task_id


async def steps_of(stack: Stack, task_id: str) -> list[EndedStep]:
    return list((await stack.plane.task_lists.steps(task_id, limit=1000)).items)


async def id_of(stack: Stack, task_id: str, name: str) -> str:
    """Return the id of the last run of a step."""
    found = [each.step_id for each in await steps_of(stack, task_id) if each.step == name]
    assert found[-1] is not None
    return found[-1]


async def has_status(stack: Stack, task_id: str, status: TaskStatus) -> bool:
    return (await stack.plane.tasks.get(task_id)).status is status


async def has_questions(stack: Stack, task_id: str, count: int) -> bool:
    return len((await stack.plane.inbox.of_task(task_id)).items) == count


async def has_taken(workflow: Approved, text: str) -> bool:
    return text in workflow.taken
