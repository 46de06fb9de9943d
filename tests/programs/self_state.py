"""Keeps what it works with in `self`; a class is served, so each run has an object of its own."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Outlined(Event):
    pass


class Written(Event):
    pass


class BookWriter(Workflow):
    def __init__(self) -> None:
        super().__init__(timeout=60)
        self.topic = ""
        self.chapters: list[str] = []

    @step
    async def outline(self, ctx: Context, ev: StartEvent) -> Outlined:
        self.topic = ev.topic
        self.chapters = [f"{n}. {ev.topic}" for n in (1, 2)]
        ctx.write_event_to_stream(Event(msg=f"outlined {ev.topic}"))
        return Outlined()

    @step
    async def write(self, ev: Outlined) -> Written:
        await call("self_state/write")
        self.chapters = [chapter + ": text" for chapter in self.chapters]
        return Written()

    @step
    async def publish(self, ev: Written) -> StopEvent:
        return StopEvent(result={"topic": self.topic, "chapters": self.chapters})
