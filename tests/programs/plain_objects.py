"""Returns an object of a class of its own, which is no model and no dataclass."""

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Report:
    def __init__(self, title: str, lines: list[str]) -> None:
        self.title = title
        self.lines = lines

    def __str__(self) -> str:
        return f"{self.title}: {', '.join(self.lines)}"


class Begun(Event):
    title: str


class MakesReport(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Begun:
        return Begun(title=ev.title)

    @step
    async def finish(self, ev: Begun) -> StopEvent:
        await call("plain_objects/finish")
        return StopEvent(result=Report(ev.title, ["one", "two"]))
