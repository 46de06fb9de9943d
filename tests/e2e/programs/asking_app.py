"""A workflow that asks for approval."""

from pydantic import Field
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class Approve(InputRequiredEvent):
    item: str
    tags: list[str] = Field(default_factory=lambda: ["shop"])


class Verdict(HumanResponseEvent):
    approved: bool
    count: int = 1


class Order(Workflow):
    @step
    async def order(self, ctx: Context, ev: StartEvent) -> StopEvent:
        verdict = await ctx.wait_for_event(Verdict, waiter_event=Approve(item=ev.item))
        return StopEvent(result=f"ordered {verdict.count} {ev.item}" if verdict.approved else "refused")
