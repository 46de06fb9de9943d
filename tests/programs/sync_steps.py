"""Steps without async, which block their thread as a library without async does."""

from tests.programs.outside import call_in_thread
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Parsed(Event):
    numbers: list[int]


class Summed(Event):
    total: int


class SyncFlow(Workflow):
    @step
    def parse(self, ev: StartEvent) -> Parsed:
        return Parsed(numbers=[int(each) for each in ev.text.split(",")])

    @step
    def add(self, ctx: Context, ev: Parsed) -> Summed:
        call_in_thread("sync_steps/add")
        return Summed(total=sum(ev.numbers))

    @step
    async def finish(self, ev: Summed) -> StopEvent:
        return StopEvent(result=ev.total)
