"""A workflow that runs another one in a step, passes its events on, and uses its result."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Reflected(Event):
    query: str


class Thought(Event):
    text: str


class ReflectionFlow(Workflow):
    """The child: improves a query."""

    @step
    async def sub_start(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Thought(text=f"about {ev.query}"))
        await call("nested/child")
        return StopEvent(result=f"better {ev.query}")


class MainWorkflow(Workflow):
    def __init__(self, timeout: float | None = 45.0, reflection: Workflow | None = None) -> None:
        super().__init__(timeout=timeout)
        self.reflection = reflection or ReflectionFlow()

    @step
    async def start(self, ctx: Context, ev: StartEvent) -> Reflected:
        handler = self.reflection.run(query=ev.query)
        async for event in handler.stream_events():
            if isinstance(event, Thought):
                ctx.write_event_to_stream(event)
        return Reflected(query=str(await handler))

    @step
    async def answer(self, ctx: Context, ev: Reflected) -> StopEvent:
        await call("nested/answer")
        return StopEvent(result=f"answer to {ev.query}")


main = MainWorkflow(reflection=ReflectionFlow(timeout=20))
