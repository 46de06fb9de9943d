"""An instance says which events come again if it is lost, and a reader who follows that has each once."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.control_plane.streams.event_filter import Passed
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import NewAttempt, TaskEvent
from tests.integration.in_process import Stack, result_of, running_stack, until

TOKENS = 200


class Token(Event):
    text: str


class Titled(Event):
    pass


class Fact(Event):
    pass


class Found(InputRequiredEvent):
    """The library streams it when the step has ended that returns it."""

    text: str = "found"


class Stopping(Workflow):
    """Stops once in the middle of a step."""

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.stops_after: int | None = TOKENS * 2 // 3
        self.has_stopped = asyncio.Event()

    async def stop(self) -> None:
        """Wait until the instance is gone."""
        self.stops_after = None
        self.has_stopped.set()
        await asyncio.Event().wait()


class Writer(Stopping):
    """A step streams a title; the next one streams a text, and stops in its middle."""

    @step
    async def title(self, ctx: Context, ev: StartEvent) -> Titled:
        ctx.write_event_to_stream(Token(text="title"))
        return Titled()

    @step
    async def write(self, ctx: Context, ev: Titled) -> StopEvent:
        for number in range(TOKENS):
            if number == self.stops_after:
                await self.stop()
            ctx.write_event_to_stream(Token(text=str(number)))
        return StopEvent(result="written")


class Parallel(Stopping):
    """While a long text is written, another step streams a fact and ends; its end is stored."""

    @step
    async def title(self, ctx: Context, ev: StartEvent) -> Titled | Fact | None:
        ctx.write_event_to_stream(Token(text="title"))
        ctx.send_event(Titled())
        ctx.send_event(Fact())
        return None

    @step
    async def write(self, ctx: Context, ev: Titled) -> StopEvent:
        ctx.write_event_to_stream(Token(text="begin"))
        if self.stops_after is not None:
            await self.stop()
        return StopEvent(result="written")

    @step
    async def look_up(self, ctx: Context, ev: Fact) -> Found:
        ctx.write_event_to_stream(Token(text="fact"))
        return Found()

    @step
    async def note(self, ctx: Context, ev: Found) -> StopEvent | None:
        ctx.write_event_to_stream(Token(text="noted"))
        return None


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


async def read(stack: Stack, task_id: str) -> list[EventRecord | NewAttempt]:
    stream = await stack.plane.streams.open(task_id)
    return [item async for group in stream for item in group if not isinstance(item, Passed)]


def kept(items: list[EventRecord | NewAttempt]) -> list[str]:
    """Return the texts that a page shows in the end which discards what comes again."""
    shown: list[TaskEvent] = []
    for item in items:
        if isinstance(item, NewAttempt):
            shown = [event for event in shown if not item.repeats(event)]
        elif not item.terminal:
            shown.append(
                TaskEvent(
                    index=item.position,
                    type=item.type,
                    data=json.loads(item.data),
                    attempt=item.attempt,
                    step_run=item.step_run,
                )
            )
    return [event.data["text"] for event in shown]


@pytest.mark.parametrize("durability", ["step", "task"])
async def test_a_page_has_each_token_once_after_a_takeover(stack: Stack, durability: str) -> None:
    workflow = Writer()
    async with stack.serving(stack.service(workflow, durability=durability, drain_timeout=0.1)):
        task_id = await stack.submit()
        following = asyncio.create_task(read(stack, task_id))
        await workflow.has_stopped.wait()
        await until(lambda: stored(stack, task_id, 1 + TOKENS * 2 // 3))
    async with stack.serving(stack.service(workflow, durability=durability)):
        assert result_of(await stack.end(task_id)) == "written"
    items = await following
    assert items == await read(stack, task_id), "followers and later readers are told the same"
    assert len(items) > TOKENS * 3 // 2
    (new,) = [item for item in items if isinstance(item, NewAttempt)]
    assert new.repeats_from == (1 if durability == "step" else 0)
    assert kept(items) == ["title", *map(str, range(TOKENS))]


async def test_beside_finished_steps_only_the_unfinished_one_repeats(stack: Stack) -> None:
    workflow = Parallel()
    async with stack.serving(stack.service(workflow, drain_timeout=0.1)):
        task_id = await stack.submit()
        await workflow.has_stopped.wait()
        await until(lambda: stored(stack, task_id, 5))
        await until(lambda: is_stored_up_to(stack, task_id, 1))
    async with stack.serving(stack.service(workflow)):
        assert result_of(await stack.end(task_id)) == "written"
    items = await read(stack, task_id)
    (new,) = [item for item in items if isinstance(item, NewAttempt)]
    assert (new.position, new.repeats_from) == (5, 1), "the whole span holds events of finished steps too"
    assert sorted(kept(items)) == ["begin", "fact", "found", "noted", "title"]


async def is_stored_up_to(stack: Stack, task_id: str, unfinished: int) -> bool:
    """Whether the ends of all steps but so many are stored."""
    (task,) = (await stack.store.read(lambda tx: tx.tasks.load([task_id]))).values()
    return task.unfinished is not None and len(json.loads(task.unfinished)["runs"]) == unfinished


async def stored(stack: Stack, task_id: str, count: int) -> bool:
    return len(await stack.store.read(lambda tx: tx.events.load(task_id))) >= count
