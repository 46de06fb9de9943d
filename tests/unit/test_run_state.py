"""The state of a run with cheap copies is the library's state, after every tick."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from tests.fan_outs import Answer, Done, Go, Item, Splits
from workflows import Context, Workflow, step
from workflows.context import JsonSerializer
from workflows.events import StopEvent
from workflows.plugins.basic import BasicRuntime
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from workflows.runtime.control_loop import rebuild_state_from_ticks
from workflows.runtime.types.ticks import TickSessionStart

from llama_deploy.workflow_library import (
    BaseInternalRunAdapterDecorator,
    BaseRuntimeDecorator,
    BrokerState,
    InternalRunAdapter,
    Runtime,
    TickAddEvent,
    WorkflowTick,
)
from llama_deploy.workflow_library.run_state import IS_KNOWN, RunState, run_state

LAST = 6
"""The last number of the runs with seven branches."""


class Listed(Splits):
    """Fans out with a list, and joins with one."""

    @step(num_workers=2)
    async def work(self, ev: Item) -> Done:
        return Done(number=ev.number)

    @step
    async def join(self, ev: list[Done]) -> StopEvent:
        return StopEvent(result=len(ev))


class Collected(Workflow):
    """Sends events, whose steps fail first, and collects them."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime=runtime)
        self.failed: set[int] = set()

    @step
    async def split(self, ctx: Context, ev: Go) -> Item | None:
        await ctx.store.set("count", ev.count)
        for number in range(ev.count):
            ctx.send_event(Item(number=number))
        return None

    @step(retry_policy=retry_policy(wait=wait_fixed(0.001), stop=stop_after_attempt(3)))
    async def work(self, ev: Item) -> Done:
        await asyncio.sleep(0.001)
        if ev.number not in self.failed:
            self.failed.add(ev.number)
            raise ValueError(ev.number)
        return Done(number=ev.number)

    @step
    async def join(self, ctx: Context, ev: Done) -> StopEvent | None:
        await asyncio.sleep(0.001)
        done = ctx.collect_events(ev, [Done] * await ctx.store.get("count"))
        return None if done is None else StopEvent(result=len(done))


class Asking(Splits):
    """Each branch waits for an answer of its own; every second answer comes too late."""

    @step
    async def ask(self, ctx: Context, ev: Item) -> Done:
        if ev.number % 2:
            ctx.send_event(Answer(number=ev.number))
        try:
            await ctx.wait_for_event(Answer, requirements={"number": ev.number}, timeout=0.02)
        except TimeoutError:
            return Done(number=-1)
        return Done(number=ev.number)

    @step
    async def join(self, ev: list[Done]) -> StopEvent:
        return StopEvent(result=len(ev))


class Paired(Workflow):
    """A step takes two events at a time."""

    @step
    async def split(self, ctx: Context, ev: Go) -> Item | Done | None:
        for number in range(ev.count):
            ctx.send_event(Item(number=number))
        for number in range(ev.count):
            ctx.send_event(Done(number=number))
        return None

    @step(num_workers=1)
    async def pair(self, item: Item, done: Done) -> StopEvent | None:
        return StopEvent(result=item.number + 1) if item.number == done.number == LAST else None


class Recorder(BaseRuntimeDecorator):
    """Records the ticks of a run."""

    def __init__(self) -> None:
        super().__init__(BasicRuntime())
        self.ticks: list[WorkflowTick] = []

    def get_internal_adapter(self, workflow: Workflow) -> InternalRunAdapter:
        return Recording(super().get_internal_adapter(workflow), self.ticks)


class Recording(BaseInternalRunAdapterDecorator):
    def __init__(self, decorated: InternalRunAdapter, ticks: list[WorkflowTick]) -> None:
        super().__init__(decorated)
        self.ticks = ticks

    async def on_tick(self, tick: WorkflowTick) -> None:
        await super().on_tick(tick)
        self.ticks.append(tick)


async def recorded(make: Callable[..., Workflow], count: int) -> tuple[Workflow, list[WorkflowTick]]:
    recorder = Recorder()
    workflow = make(runtime=recorder)
    assert await workflow.run(count=count) == count
    return workflow, recorder.ticks


def text(state: BrokerState) -> Any:
    return state.to_serialized(JsonSerializer()).model_dump()


def waiters(state: BrokerState) -> Any:
    """What the library omits from a serialized state."""
    return [
        (each.waiter_id, each.timed_out, each.requirements)
        for worker in state.workers.values()
        for each in worker.collected_waiters
    ]


@pytest.mark.parametrize("make", [Listed, Collected, Asking, Paired])
async def test_each_tick_leads_to_the_state_of_the_library(make: Callable[..., Workflow]) -> None:
    workflow, ticks = await recorded(make, LAST + 1)
    assert IS_KNOWN
    theirs = BrokerState.from_workflow(workflow)
    ours = run_state(theirs)
    for each in ticks:
        before = text(ours), waiters(ours)
        following = rebuild_state_from_ticks(ours, [each])
        assert (text(ours), waiters(ours)) == before, "a copy shares what the reducer changes"
        theirs, ours = rebuild_state_from_ticks(theirs, [each]), following
        assert isinstance(ours, RunState)
        assert text(ours) == text(theirs)
        assert waiters(ours) == waiters(theirs)
        resumed = TickSessionStart(stamped_at=1.0)
        assert text(rebuild_state_from_ticks(ours, [resumed])) == text(
            rebuild_state_from_ticks(theirs, [resumed])
        )
    assert not ours.is_running


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions are called during `work`."""
    count = 0

    def on_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


async def test_a_tick_costs_the_same_however_many_events_wait() -> None:
    workflow, ticks = await recorded(Listed, 1)
    start = [each for each in ticks if isinstance(each, TickAddEvent)][:1]

    def cost(waiting: int) -> int:
        items: list[WorkflowTick] = [TickAddEvent(event=Item(number=n)) for n in range(waiting)]
        state = run_state(BrokerState.from_workflow(workflow))
        state = rebuild_state_from_ticks(state, [*start, *items])
        return calls_of(lambda: rebuild_state_from_ticks(state, [TickAddEvent(event=Item(number=-1))]))

    assert cost(2_000) == cost(20)
