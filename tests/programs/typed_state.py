"""A typed state: a pydantic model with nested models, an enum, dates and a counter."""

from datetime import UTC, date, datetime
from enum import Enum

from pydantic import BaseModel, Field
from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Mood(Enum):
    CALM = "calm"
    BUSY = "busy"


class Visit(BaseModel):
    at: datetime
    tags: set[str] = set()


class MyState(BaseModel):
    count: int = 0
    mood: Mood = Mood.CALM
    since: date | None = None
    visits: list[Visit] = Field(default_factory=list)


class Next(Event):
    pass


class StatefulFlow(Workflow):
    @step
    async def start(self, ctx: Context[MyState], ev: StartEvent) -> Next:
        async with ctx.store.edit_state() as state:
            state.count += 1
            state.mood = Mood(ev.mood)
            state.since = date(2026, 1, 31)
            state.visits.append(Visit(at=datetime(2026, 2, 1, tzinfo=UTC), tags={"first"}))
        return Next()

    @step
    async def go_on(self, ctx: Context[MyState], ev: Next) -> StopEvent | Next:
        await call(f"typed_state/{(await ctx.store.get_state()).count}")
        async with ctx.store.edit_state() as state:
            state.count += 1
            if state.count < 4:
                return Next()
        return StopEvent(result=await ctx.store.get_state())


flow = StatefulFlow()
