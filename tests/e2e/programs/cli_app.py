"""Workflows that the tests of `llamactl` serve."""

import asyncio

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Progress(Event):
    text: str


class Ask(StartEvent):
    message: str
    times: int = 1


class Answer(StopEvent):
    answer: str


class Repeat(Workflow):
    """Repeats what it is told.

    And more.
    """

    @step
    async def repeat(self, ctx: Context, ev: Ask) -> StopEvent:
        for number in range(ev.times):
            ctx.write_event_to_stream(Progress(text=f"{ev.message} {number}"))
        if ev.message == "boom":
            raise ValueError("a bad message")
        return StopEvent(result=ev.message * ev.times)


class Sleep(Workflow):
    @step
    async def sleep(self, ctx: Context, ev: StartEvent) -> Answer:
        ctx.write_event_to_stream(Progress(text="begun"))
        await asyncio.sleep(ev.get("seconds", 300))
        return Answer(answer="slept")


class Count(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        count = await ctx.store.get("count", default=0) + 1
        await ctx.store.set("count", count)
        return StopEvent(result={"count": count, "given": ev.get("given", None)})


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix="Sure?")

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Keeps(Workflow):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []

    @step
    async def keep(self, ev: StartEvent) -> StopEvent:
        self.given = [*self.given, ev.given]
        return StopEvent(result=self.given)


def keeps_too() -> Keeps:
    return Keeps()


def has_no_model() -> Keeps:
    raise OSError("no model")


def settings() -> dict[str, str]:
    return {}


async def makes_later() -> Keeps:
    return Keeps()


class Proposal(InputRequiredEvent):
    price: int


class Decision(HumanResponseEvent):
    approved: bool


class Proposing(Workflow):
    @step
    async def propose(self, ev: StartEvent) -> Proposal:
        return Proposal(price=ev.get("price", 3))

    @step
    async def decide(self, ev: Decision) -> StopEvent:
        return StopEvent(result="bought" if ev.approved is True else "left")


class Waiting(Workflow):
    """Asks nothing; it waits."""

    @step
    async def wait(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return StopEvent(result=ev.get("greeting", "") + answer.response)


def sleep_without_limit() -> Sleep:
    return Sleep(timeout=None)


def needs_something(something: str) -> Sleep:
    return Sleep()


repeat = Repeat()
keeps = Keeps()
number = 3
