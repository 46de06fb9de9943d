"""What a run measures depends neither on the system clock nor on the life of an instance."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_delay, wait_fixed

from llama_deploy.services.run import time_budget
from llama_deploy.types import TaskStatus
from tests.integration.in_process import Stack, result_of, running_stack, until

JUMPS = pytest.mark.parametrize("jump", [-3600.0, -30.0, 30.0, 3600.0])
SOON = 25.0
"""In seconds; less than a jump, and far more than what the runs measure."""


class SystemClock:
    """The system clock of this process, which the test can set."""

    def __init__(self) -> None:
        self._read = time.time
        self.offset = 0.0

    def time(self) -> float:
        return self._read() + self.offset


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SystemClock:
    clock = SystemClock()
    monkeypatch.setattr(time, "time", clock.time)
    return clock


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack:
        yield stack


class Sets(Workflow):
    """Sets the clock, and then needs a second try, or works until its time limit."""

    def __init__(self, clock: SystemClock, jump: float, *, timeout: float | None = None) -> None:
        super().__init__(timeout=timeout)
        self.clock = clock
        self.jump = jump
        self.tried = 0

    @step(retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_delay(20)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        self.tried += 1
        self.clock.offset += self.jump
        if ev.get("then") == "work":
            await asyncio.sleep(60)
        if self.tried == 1:
            raise ConnectionError("once")
        return StopEvent(result=self.tried)


class Long(Workflow):
    """Its only step lasts longer than its time limit."""

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(60)
        return StopEvent()


async def test_a_run_whose_instance_dies_does_not_get_its_time_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "NOTE_SECONDS", 0.2)

    async def has_worked() -> bool:
        task = (await stack.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]
        return task.running_seconds >= 4

    async with stack.serving(stack.service(Long(timeout=6), drain_timeout=0)) as service:
        task_id = await stack.submit()
        await until(has_worked)
        service.cancel()
    async with stack.serving(stack.service(Long(timeout=6))):
        since = time.monotonic()
        view = await stack.end(task_id)
        assert (view.status, view.attempt) == (TaskStatus.TIMED_OUT, 2)
        assert time.monotonic() - since < 6


class Waits(Workflow):
    """Sets the clock while it waits for an answer that does not come."""

    def __init__(self, clock: SystemClock, jump: float) -> None:
        super().__init__(timeout=None)
        self.clock = clock
        self.jump = jump

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        asyncio.get_running_loop().call_later(0.1, self.set_clock)
        try:
            await ctx.wait_for_event(HumanResponseEvent, timeout=0.3)
        except TimeoutError:
            return StopEvent(result="late")
        return StopEvent(result="early")

    def set_clock(self) -> None:
        self.clock.offset = self.jump


@JUMPS
async def test_a_time_limit_lasts_as_long(stack: Stack, clock: SystemClock, jump: float) -> None:
    async with stack.serving(stack.service(Sets(clock, jump, timeout=0.6))):
        since = time.monotonic()
        view = await stack.end(await stack.submit(then="work"), wait=SOON)
        assert view.status is TaskStatus.TIMED_OUT
        assert 0.5 < time.monotonic() - since < SOON


@JUMPS
async def test_a_retry_comes_in_time_and_is_not_taken_for_a_late_one(
    stack: Stack, clock: SystemClock, jump: float
) -> None:
    async with stack.serving(stack.service(Sets(clock, jump))):
        since = time.monotonic()
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == 2
        assert 0.25 < time.monotonic() - since < SOON


@JUMPS
async def test_a_wait_ends_in_time(stack: Stack, clock: SystemClock, jump: float) -> None:
    async with stack.serving(stack.service(Waits(clock, jump), idle_timeout=60)):
        since = time.monotonic()
        assert result_of(await stack.end(await stack.submit(), wait=SOON)) == "late"
        assert 0.25 < time.monotonic() - since < SOON
