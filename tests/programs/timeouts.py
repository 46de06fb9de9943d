"""Gives up on a slow service inside a step; and a workflow that exceeds its own time limit."""

import asyncio

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Quoted(Event):
    price: int | None


class Quote(Workflow):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> Quoted:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), timeout=0.05)
        except TimeoutError:
            ctx.write_event_to_stream(Event(msg="no answer in time"))
        return Quoted(price=None)

    @step
    async def estimate(self, ev: Quoted) -> StopEvent:
        await call("timeouts/estimate")
        return StopEvent(result="about 10" if ev.price is None else str(ev.price))


class NeverEnds(Workflow):
    @step
    async def hang(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await call("never_ends/hang")
        await asyncio.Event().wait()
        return StopEvent()


never_ends = NeverEnds(timeout=1)
