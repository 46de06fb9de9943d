"""Synchronous steps run in threads of their service; those that hang are replaced."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.types import TaskStatus
from tests.integration.in_process import PATIENCE, Stack, result_of, running_stack, until


class Hangs(Workflow):
    """Hangs in a step if it is told to, until the test has ended."""

    gate: threading.Event
    began: threading.Semaphore

    @step
    def work(self, ev: StartEvent) -> StopEvent:
        if ev.get("hangs", default=False):
            self.began.release()
            self.gate.wait(60)
        return StopEvent(result=threading.current_thread().name)


class Item(Event):
    number: int


class Part(Event):
    number: int


class FanOut(Workflow):
    barrier: threading.Barrier

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | None:
        for number in range(4):
            ctx.send_event(Item(number=number))
        return None

    @step(num_workers=4)
    def work(self, ev: Item) -> Part:
        self.barrier.wait(PATIENCE)
        return Part(number=ev.number)

    @step
    async def join(self, ctx: Context, ev: Part) -> StopEvent | None:
        parts = ctx.collect_events(ev, [Part] * 4)
        return None if parts is None else StopEvent(result=len(parts))


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    Hangs.gate, Hangs.began = threading.Event(), threading.Semaphore(0)
    yield Hangs.gate
    Hangs.gate.set()


def threads_of(service: str) -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith(f"{service}-step-")]


def begun() -> bool:
    return Hangs.began.acquire(blocking=False)


@pytest.mark.usefixtures("gate")
async def test_steps_that_hang_hold_up_nobody(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    service = stack.service(lambda: Hangs(timeout=0.2), "hangs", max_concurrent_tasks=4, max_step_threads=4)
    hung = 40  # more than any default executor has
    async with stack.serving(service):
        ids = [await stack.submit("hangs", hangs=True) for _ in range(hung)]
        for task_id in ids:
            assert (await stack.end(task_id)).status is TaskStatus.TIMED_OUT
        assert result_of(await stack.run("hangs")).startswith("hangs-step-")
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 42), PATIENCE) == 42
        lost = [name for name in threads_of("hangs") if name.endswith(" work (lost)")]
        assert len(lost) == hung
        await until(lambda: caplog.text.count("the step 'work' of task ") == hung)
        for task_id in ids:
            assert caplog.text.count(f"the step 'work' of task {task_id} still runs in its thread") == 1
        assert f"Lost threads now: {hung}." in caplog.text
    assert all(each.daemon for each in threading.enumerate() if each.name in lost)


async def test_an_instance_with_too_many_lost_threads_takes_no_tasks_until_they_end(
    stack: Stack, caplog: pytest.LogCaptureFixture, gate: threading.Event
) -> None:
    caplog.set_level(logging.INFO)
    service = stack.service(lambda: Hangs(timeout=None), "hangs", max_lost_threads=2)
    async with stack.serving(service):
        ids = [await stack.submit("hangs", hangs=True) for _ in range(2)]
        for _ in ids:
            await until(begun)
        for task_id in ids:
            await stack.plane.tasks.cancel(task_id)
            assert (await stack.end(task_id)).status is TaskStatus.CANCELLED
        await until(lambda: "takes no new tasks in this process: 2 threads are lost" in caplog.text)
        # One subscription may have asked for tasks before; what it brings still runs.
        await stack.end(await stack.submit("hangs"), wait=0.5)
        waiting = await stack.submit("hangs")
        assert (await stack.end(waiting, wait=0.5)).status is TaskStatus.QUEUED
        gate.set()
        assert result_of(await stack.end(waiting))
        assert "service hangs takes tasks again" in caplog.text


async def test_the_parallel_steps_of_all_tasks_run_at_the_same_time(stack: Stack) -> None:
    FanOut.barrier = threading.Barrier(4 * 8)
    async with stack.serving(stack.service(FanOut, "fan")):
        ids = [await stack.submit("fan") for _ in range(8)]
        assert [result_of(await stack.end(task_id)) for task_id in ids] == [4] * 8
    await until(lambda: not threads_of("fan"))


@pytest.mark.usefixtures("gate")
async def test_each_service_has_its_own_threads(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    shared = Hangs(timeout=None)  # one object for two services
    first = stack.service(shared, "first", max_step_threads=1)
    second = stack.service(shared, "second", max_step_threads=1)
    async with stack.serving(first), stack.serving(second):
        await stack.submit("first", hangs=True)
        await until(begun)
        assert result_of(await stack.run("second")) == "second-step-1 work"
        waiting = await stack.submit("first")
        await until(lambda: "the step 'work' waits for a thread, because 1 synchronous" in caplog.text)
        assert threads_of("first") == ["first-step-1 work"]
        Hangs.gate.set()
        assert result_of(await stack.end(waiting)) == "first-step-1 work"


class Outer(Workflow):
    """Runs a workflow of its own in a step."""

    inner: Workflow

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.inner.run())


async def test_a_workflow_that_a_step_runs_uses_the_threads_of_the_service(stack: Stack) -> None:
    Outer.inner = Hangs()
    stack.service(Outer.inner, "other")
    async with stack.serving(stack.service(Outer, "outer")):
        assert result_of(await stack.run("outer")) == "outer-step-1 work"
