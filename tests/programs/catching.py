"""Catches the failure of a step, and goes on with a fallback."""

from tests.programs.outside import call
from workflows import Context, Workflow, catch_error, step
from workflows.events import Event, StartEvent, StepFailedEvent, StopEvent


class Page(Event):
    text: str


class Fallback(Event):
    reason: str


class Crawl(Workflow):
    @step
    async def fetch(self, ctx: Context, ev: StartEvent) -> Page:
        if not ev.url.startswith("https:"):
            raise ValueError(f"{ev.url} is not secure")
        return Page(text=f"the page at {ev.url}")

    @catch_error(for_steps=["fetch"])
    async def use_cache(self, ctx: Context, ev: StepFailedEvent) -> Fallback:
        ctx.write_event_to_stream(Fallback(reason=str(ev.exception)))
        return Fallback(reason=f"{ev.step_name}: {ev.exception}")

    @step
    async def summarize(self, ev: Page | Fallback) -> StopEvent:
        await call("catching/summarize")
        return StopEvent(result=ev.text if isinstance(ev, Page) else f"cached, because {ev.reason}")
