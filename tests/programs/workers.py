"""A crawl whose work grows while it runs: a page that was read adds the pages it links to."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

LINKS = {"home": ["about", "news"], "news": ["today", "about"], "about": [], "today": []}


class Visit(Event):
    page: str


class Visited(Event):
    page: str
    links: list[str]


class Crawler(Workflow):
    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Visit:
        await ctx.store.set("open", 1)
        await ctx.store.set("found", [ev.page])
        return Visit(page=ev.page)

    @step(num_workers=4)
    async def visit(self, ctx: Context, ev: Visit) -> Visited:
        await call(f"workers/{ev.page}")
        return Visited(page=ev.page, links=LINKS[ev.page])

    @step(num_workers=1)
    async def follow(self, ctx: Context, ev: Visited) -> Visit | StopEvent | None:
        found = await ctx.store.get("found")
        new = [link for link in ev.links if link not in found]
        await ctx.store.set("found", found + new)
        left = await ctx.store.get("open") + len(new) - 1
        await ctx.store.set("open", left)
        for link in new:
            ctx.send_event(Visit(page=link))
        return StopEvent(result=sorted(found + new)) if left == 0 else None
