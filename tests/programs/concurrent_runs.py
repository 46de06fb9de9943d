"""Sends several events at once, and collects what comes back; only a run knows how many there are."""

import asyncio
from typing import Any

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class StepTwoEvent(Event):
    query: str


class StepThreeEvent(Event):
    result: str


class ProgressEvent(Event):
    msg: str


class ParallelFlow(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> StepTwoEvent | None:
        await ctx.store.set("num_to_collect", len(ev.queries))
        for query in ev.queries:
            ctx.send_event(StepTwoEvent(query=query))
        return None

    @step(num_workers=3)
    async def step_two(self, ctx: Context, ev: StepTwoEvent) -> StepThreeEvent:
        await asyncio.sleep(0)
        await call(f"concurrent_runs/{ev.query}")
        ctx.write_event_to_stream(ProgressEvent(msg=f"done with {ev.query}"))
        return StepThreeEvent(result=ev.query.upper())

    @step
    async def step_three(self, ctx: Context, ev: StepThreeEvent) -> StopEvent | None:
        num_to_collect = await ctx.store.get("num_to_collect")
        result: list[Any] | None = ctx.collect_events(ev, [StepThreeEvent] * num_to_collect)
        if result is None:
            return None
        return StopEvent(result=sorted(each.result for each in result))


flow = ParallelFlow(timeout=None)
