"""Writes a report to a file, reads it again in the next step, and adds to it."""

from pathlib import Path

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Saved(Event):
    path: Path


class WritesFiles(Workflow):
    @step
    async def save(self, ctx: Context, ev: StartEvent) -> Saved:
        path = Path("reports") / f"{ev.name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {ev.name}\n")
        await ctx.store.set("path", str(path))
        return Saved(path=path)

    @step
    async def extend(self, ctx: Context, ev: Saved) -> StopEvent:
        await call("files/extend")
        text = ev.path.read_text() + "The end.\n"
        ev.path.write_text(text)
        ctx.write_event_to_stream(Saved(path=ev.path))
        return StopEvent(result=text)
