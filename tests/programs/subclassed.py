"""A workflow in layers: an abstract base, a mixin, and a subclass that overrides a step."""

import logging

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

logger = logging.getLogger(__name__)


class Loaded(Event):
    rows: list[int]


class Cleaned(Event):
    rows: list[int]


class Audited(Event):
    step_name: str


class AuditMixin:
    """Streams which steps were done."""

    async def audit(self, ctx: Context, step_name: str) -> None:
        logger.info("done: %s", step_name)
        done = await ctx.store.get("done", default=[])
        await ctx.store.set("done", [*done, step_name])
        ctx.write_event_to_stream(Audited(step_name=step_name))


class Pipeline(Workflow):
    @step
    async def load(self, ctx: Context, ev: StartEvent) -> Loaded:
        return Loaded(rows=ev.rows)

    @step
    async def clean(self, ctx: Context, ev: Loaded) -> Cleaned:
        return Cleaned(rows=ev.rows)

    @step
    async def report(self, ctx: Context, ev: Cleaned) -> StopEvent:
        await call("subclassed/report")
        return StopEvent(result=self.summarize(ev.rows))

    def summarize(self, rows: list[int]) -> str:
        raise NotImplementedError


class SumPipeline(AuditMixin, Pipeline):
    @step
    async def clean(self, ctx: Context, ev: Loaded) -> Cleaned:  # type: ignore[override]
        await self.audit(ctx, "clean")
        return Cleaned(rows=[row for row in ev.rows if row > 0])

    def summarize(self, rows: list[int]) -> str:
        return f"sum {sum(rows)}"
