"""Fails with an exception of its own, after a step that was fine."""

from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class OutOfCreditError(Exception):
    """The account is empty."""


class Checked(Event):
    credit: int


class Spend(Workflow):
    @step
    async def check(self, ev: StartEvent) -> Checked:
        return Checked(credit=ev.credit)

    @step
    async def spend(self, ev: Checked) -> StopEvent:
        await call("failing/spend")
        if ev.credit < 10:
            raise OutOfCreditError(f"only {ev.credit} left")
        return StopEvent(result=ev.credit - 10)
