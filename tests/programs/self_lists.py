"""Keeps lists in `self` that its steps append to; the object is made for each run."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Searched(Event):
    round: int


class Researcher(Workflow):
    def __init__(self) -> None:
        super().__init__(timeout=60)
        self.notes: list[str] = []
        self.seen: set[str] = set()

    @step
    async def search(self, ctx: Context, ev: StartEvent | Searched) -> Searched | StopEvent:
        number = ev.round + 1 if isinstance(ev, Searched) else 1
        await call(f"self_lists/search-{number}")
        self.notes.append(f"note {number}")
        self.seen.add(f"page {number}")
        ctx.write_event_to_stream(Searched(round=number))
        if number < 3:
            return Searched(round=number)
        return StopEvent(result={"notes": self.notes, "seen": sorted(self.seen)})
