"""A step that takes a family of events, one outside of its class, and an event sent to a step by name."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Shape(Event):
    name: str


class Circle(Shape):
    radius: int


class Square(Shape):
    side: int


class Measured(Event):
    items: list[str]  # type: ignore[assignment]


class Geometry(Workflow):
    @step
    async def draw(self, ctx: Context, ev: StartEvent) -> Shape:
        if ev.round:
            return Circle(name="a circle", radius=2)
        return Square(name="a square", side=3)

    @step(accept_event_subclasses=True)
    async def measure(self, ctx: Context, ev: Shape) -> Measured | None:
        await call(f"shapes/{type(ev).__name__}")
        await ctx.store.set("shape", {"name": ev.name})
        await ctx.store.set("shape.kind", type(ev).__name__)
        ctx.send_event(Measured(items=[ev.name]), step="report")
        return None


@step(workflow=Geometry)
async def report(ctx: Context, ev: Measured) -> StopEvent:
    return StopEvent(result=[*ev.items, await ctx.store.get("shape.kind")])
