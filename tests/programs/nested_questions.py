"""A parent passes on the question of a workflow that it runs, and hands the answer down."""

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Booked(Event):
    text: str


class BookHotel(Workflow):
    """The child: asks before it books."""

    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix=f"Book a hotel in {ev.city}?")

    @step
    async def book(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result="a hotel" if ev.response == "yes" else "no hotel")


class PlanTrip(Workflow):
    @step
    async def hotel(self, ctx: Context, ev: StartEvent) -> Booked:
        handler = BookHotel(timeout=None).run(city=ev.city)
        try:
            async for event in handler.stream_events():
                if isinstance(event, InputRequiredEvent):
                    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=event)
                    await handler.send_event(answer)
            return Booked(text=f"{ev.city} with {await handler}")
        finally:
            # The step runs again from its start when the answer is there.
            if not handler.is_done():
                await handler.cancel_run()

    @step
    async def confirm(self, ev: Booked) -> StopEvent:
        await call("nested_questions/confirm")
        return StopEvent(result=ev.text)
