"""What a task shows of its run: steps that have ended, steps that run, attempts, and progress."""

# ruff: noqa: ARG002 - a step takes its event
from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.client import Client
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.task_lists import TaskDetails
from llama_deploy.workflow import TaskInfo, TaskProgress
from tests.integration.in_process import PATIENCE, Stack, running_stack


class Streamed(Event):
    number: int


class Next(Event):
    number: int


class One(Workflow):
    @step
    async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for number in range(ev.get("events", 0)):
            ctx.write_event_to_stream(Streamed(number=number))
        if ev.get("fails", False):
            raise KeyError("no")
        return StopEvent(result=1)


class Chain(Workflow):
    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Next:
        ctx.write_event_to_stream(Streamed(number=0))
        return Next(number=0)

    @step
    def second(self, ev: Next) -> StopEvent:
        return StopEvent(result=2)


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="Sure?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Waiting(Workflow):
    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=answer.response)


class Parent(Workflow):
    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        async with Client(ev.url) as client:
            return StopEvent(result=await client.run("one"))


GO_ON = threading.Event()


class Telling(Workflow):
    """Tells its progress as a parameter says, and goes on when it may."""

    @step
    async def tell(self, ctx: Context, ev: StartEvent, task: TaskInfo) -> StopEvent:
        for text in ev.texts:
            if ev.how == "event":
                ctx.write_event_to_stream(TaskProgress(text=text))
            else:
                task.set_status(text)
        if ev.get("waits", False):
            await asyncio.to_thread(GO_ON.wait)
        return StopEvent(result=None)


class InThread(Workflow):
    @step
    def tell(self, ev: StartEvent, task: TaskInfo) -> StopEvent:
        task.set_status("in a thread")
        GO_ON.wait()
        return StopEvent(result=None)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    GO_ON.clear()
    async with running_stack() as running:
        yield running
    GO_ON.set()


async def ended(stack: Stack, name: str = "service", **arguments: Any) -> TaskDetails:
    task = await stack.run(name, **arguments)
    return await stack.plane.task_lists.details(task.task_id)


def names(task: TaskDetails) -> list[tuple[str, int]]:
    assert task.steps is not None
    return [(each.step, each.attempt) for each in task.steps]


@pytest.mark.parametrize("durability", ["auto", "task"])
async def test_the_step_of_a_short_run_is_kept(stack: Stack, durability: str) -> None:
    async with stack.serving(stack.service(One(), durability=durability)):
        task = await ended(stack, events=3)
    assert names(task) == [("only", 1)]
    assert task.steps is not None
    (only,) = task.steps
    assert (only.events, only.error) == (3, None)
    assert task.created_at <= only.ended_at
    assert only.began_at <= only.ended_at


async def test_a_step_that_fails_names_its_exception(stack: Stack) -> None:
    async with stack.serving(stack.service(One())):
        task = await ended(stack, fails=True)
    assert task.steps is not None
    assert [(each.step, each.error) for each in task.steps] == [("only", "KeyError")]
    assert task.error is not None
    assert task.error.type == "builtins.KeyError"


async def test_steps_are_kept_once_and_in_order(stack: Stack) -> None:
    async with stack.serving(stack.service(Chain())):
        task = await ended(stack)
    assert names(task) == [("first", 1), ("second", 1)]
    assert task.steps is not None
    assert [each.events for each in task.steps] == [1, 0]


@pytest.mark.parametrize("workflow", [Asking, Waiting])
async def test_a_parked_run_keeps_its_attempts_and_steps(stack: Stack, workflow: type[Workflow]) -> None:
    async with stack.serving(stack.service(workflow(), idle_timeout=0.1)):
        task_id = await stack.submit()

        async def is_parked() -> bool:
            return await stack.is_parked(task_id)

        await eventually(is_parked, seconds=PATIENCE)
        parked = await stack.plane.task_lists.details(task_id)
        assert parked.waiting_since is not None
        assert parked.waits_for is not None
        assert parked.waits_for.startswith("an event")
        assert parked.attempts is not None
        assert [(each.attempt, each.end) for each in parked.attempts] == [(1, "parked")]
        await stack.send(task_id, HumanResponseEvent(response="yes"))
        await stack.end(task_id)
    task = await stack.plane.task_lists.details(task_id)
    assert task.attempts is not None
    assert [(each.attempt, each.end) for each in task.attempts] == [(1, "parked"), (2, "succeeded")]
    first, second = task.attempts
    assert first.began_at is not None
    assert second.began_at is not None
    assert second.ended_at is not None
    assert task.started_at == first.began_at < second.began_at <= second.ended_at
    assert task.waiting_since is None
    expected = [("ask", 1), ("end", 2)] if workflow is Asking else [("wait", 2)]
    assert names(task) == expected


async def test_a_task_that_a_step_submits_knows_its_parent(stack: Stack) -> None:
    async with (
        stack.serving(stack.service(One(), "one")),
        stack.serving(stack.service(Parent())),
        Client(stack.server.config.url) as client,
    ):
        task = await ended(stack, url=stack.server.config.url)
        assert task.children is not None
        (child,) = task.children
        assert (await client.tasks.get(child)).parent_task_id == task.task_id
        assert [each.task_id for each in (await client.tasks.list(parent=task.task_id)).items] == [child]


@pytest.mark.parametrize("how", ["event", "status"])
async def test_the_last_text_is_shown_at_the_task(stack: Stack, how: str) -> None:
    async with stack.serving(stack.service(Telling())):
        task_id = await stack.submit(texts=["a", "b", "c" * 1000], how=how, waits=True)

        async def is_told() -> bool:
            return (await stack.plane.task_lists.details(task_id)).progress == "c" * 500

        await eventually(is_told, seconds=PATIENCE)
        GO_ON.set()
        await stack.end(task_id)
    assert await is_told()
    kinds = [event.type for event in await stack.events(task_id)]
    assert kinds == (["TaskProgress"] * 3 if how == "event" else []) + ["StopEvent"]


async def test_the_last_text_of_a_short_run_is_not_lost(stack: Stack) -> None:
    async with stack.serving(stack.service(Telling())):
        task = await ended(stack, texts=["begun", "done"], how="status")
    assert task.progress == "done"


async def test_a_step_in_a_thread_tells_its_progress_and_is_shown_while_it_runs(stack: Stack) -> None:
    async with stack.serving(stack.service(InThread())):
        task_id = await stack.submit()
        found: list[TaskDetails] = []

        async def is_shown() -> bool:
            found[:] = [await stack.plane.task_lists.details(task_id)]
            return bool(found[0].present_steps) and found[0].progress == "in a thread"

        await eventually(is_shown, seconds=PATIENCE)
        assert found[0].present_steps is not None
        assert [each.step for each in found[0].present_steps] == ["tell"]
        assert found[0].attempts is not None
        assert [(each.attempt, each.end) for each in found[0].attempts] == [(1, None)]
        GO_ON.set()
        await stack.end(task_id)
    assert (await stack.plane.task_lists.details(task_id)).present_steps is None
