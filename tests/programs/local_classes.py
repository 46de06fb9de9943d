"""A workflow whose class and events are made inside of a function, which is called once."""

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


def build(greeting: str) -> Workflow:
    class Greeted(Event):
        text: str

    class Greeter(Workflow):
        @step
        async def greet(self, ev: StartEvent) -> Greeted:
            return Greeted(text=f"{greeting}, {ev.name}")

        @step
        async def end(self, ev: Greeted) -> StopEvent:
            await call("local_classes/end")
            return StopEvent(result=ev.text)

    return Greeter()


greeter = build("Hello")
