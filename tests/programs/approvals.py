"""Waits within its code for two people; each answer has to come from the person who was asked."""

from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


class ApprovalRequest(InputRequiredEvent):
    role: str
    amount: int


class Approval(HumanResponseEvent):
    role: str
    granted: bool


class Purchase(Workflow):
    @step
    async def approve(self, ctx: Context, ev: StartEvent) -> StopEvent:
        granted = {}
        for role in ("manager", "director"):
            approval = await ctx.wait_for_event(
                Approval,
                waiter_id=role,
                waiter_event=ApprovalRequest(role=role, amount=ev.amount),
                requirements={"role": role},
            )
            granted[role] = approval.granted
        return StopEvent(result=granted)


purchase = Purchase(timeout=None)
