"""Workflows that ask many questions: at the same time, and one after the other."""

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

QUESTIONS = 20


class Ask(InputRequiredEvent):
    number: int


class Reply(HumanResponseEvent):
    text: str


class Item(Event):
    number: int


class Heard(Event):
    number: int
    text: str


class Survey(Workflow):
    """Asks all at once, and the questions differ in nothing but the event that asks."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Item | None:
        for number in range(QUESTIONS):
            ctx.send_event(Item(number=number))
        return None

    @step(num_workers=QUESTIONS)
    async def ask(self, ctx: Context, ev: Item) -> Heard:
        reply = await ctx.wait_for_event(Reply, waiter_event=Ask(number=ev.number), timeout=None)
        return Heard(number=ev.number, text=reply.text)

    @step(num_workers=1)
    async def join(self, ctx: Context, ev: Heard) -> StopEvent | None:
        async with ctx.store.edit_state() as state:
            state["heard"] = heard = [*state.get("heard", []), (ev.number, ev.text)]
        return StopEvent(result=heard) if len(heard) == QUESTIONS else None


class Talk(Workflow):
    """Asks one after the other; a step ends with the question, another begins with the answer."""

    @step
    async def begin(self, ev: StartEvent) -> Ask:
        return Ask(number=0)

    @step(num_workers=1)
    async def hear(self, ctx: Context, ev: Reply) -> Ask | StopEvent:
        async with ctx.store.edit_state() as state:
            heard = state.get("heard", [])
            state["heard"] = heard = [*heard, (len(heard), ev.text)]
        return StopEvent(result=heard) if len(heard) == QUESTIONS else Ask(number=len(heard))


def survey() -> Survey:
    return Survey(timeout=None)


def talk() -> Talk:
    return Talk(timeout=None)
