"""Tries three strategies at once, lets a judge choose."""

from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class NaiveEvent(Event):
    query: str


class HighTopKEvent(Event):
    query: str


class RerankEvent(Event):
    query: str


class ResponseEvent(Event):
    query: str
    response: str
    source: str


class MultiStrategy(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> NaiveEvent | HighTopKEvent | RerankEvent | None:
        for event in (NaiveEvent, HighTopKEvent, RerankEvent):
            ctx.send_event(event(query=ev.query))
        return None

    @step
    async def naive(self, ctx: Context, ev: NaiveEvent) -> ResponseEvent:
        await call("strategies/naive")
        return ResponseEvent(query=ev.query, source="naive", response="short")

    @step
    async def high_top_k(self, ctx: Context, ev: HighTopKEvent) -> ResponseEvent:
        await call("strategies/high")
        return ResponseEvent(query=ev.query, source="high", response="rather long")

    @step
    async def rerank(self, ctx: Context, ev: RerankEvent) -> ResponseEvent:
        await call("strategies/rerank")
        return ResponseEvent(query=ev.query, source="rerank", response="just right")

    @step
    async def judge(self, ctx: Context, ev: ResponseEvent) -> StopEvent | None:
        ready = ctx.collect_events(ev, [ResponseEvent] * 3)
        if ready is None:
            return None
        await call("strategies/judge")
        best = max(ready, key=lambda each: (each.response.startswith("just"), each.source))
        return StopEvent(result={"best": best.source, "query": best.query, "of": len(ready)})
