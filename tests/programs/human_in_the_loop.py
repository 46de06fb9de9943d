"""Asks a person by returning a question, and goes on with the step that takes the answer."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class DraftEvent(Event):
    text: str
    version: int


class ReviewRequired(InputRequiredEvent):
    prefix: str
    draft: str


class ReviewGiven(HumanResponseEvent):
    response: str


class WriteWithReview(Workflow):
    """Writes a new version until a person accepts it."""

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> DraftEvent:
        await call("human_in_the_loop/write")
        await ctx.store.set("topic", ev.topic)
        return DraftEvent(text=f"On {ev.topic}", version=1)

    @step
    async def ask(self, ctx: Context, ev: DraftEvent) -> ReviewRequired:
        await ctx.store.set("version", ev.version)
        return ReviewRequired(prefix=f"Accept version {ev.version}?", draft=ev.text)

    @step
    async def hear(self, ctx: Context, ev: ReviewGiven) -> DraftEvent | StopEvent:
        version = await ctx.store.get("version")
        topic = await ctx.store.get("topic")
        if ev.response == "yes":
            return StopEvent(result=f"Version {version} on {topic} is accepted")
        await call("human_in_the_loop/rewrite")
        return DraftEvent(text=f"On {topic}, {ev.response}", version=version + 1)
