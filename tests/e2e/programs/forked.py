"""Workflows that count in `ctx.store`, and whose last step fails until a file says that it is repaired."""

import asyncio
import os
import time
from pathlib import Path

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent


def note(word: str, name: str) -> None:
    """Append a line to the ledger."""
    ledger = os.open("ledger.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, f"{word} {name} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(ledger)


async def begin(ctx: Context, name: str) -> None:
    """Count a step that begins, in the ledger and in the state of the run."""
    note("begin", name)
    await ctx.store.set("steps", [*await ctx.store.get("steps", []), name])
    await ctx.store.set(f"count of {name}", 1 + await ctx.store.get(f"count of {name}", 0))


async def end(ctx: Context, name: str) -> StopEvent:
    """Return what was counted, once the program is repaired."""
    await begin(ctx, name)
    if not Path("repaired").exists():
        raise ValueError("the disk is full")
    steps = await ctx.store.get("steps")
    return StopEvent(result={each: await ctx.store.get(f"count of {each}") for each in steps})


class Second(Event):
    pass


class Third(Event):
    pass


class Fourth(Event):
    pass


class Part(Event):
    number: int


class Done(Event):
    number: int


class Approval(HumanResponseEvent):
    by: str


class Ask(InputRequiredEvent):
    question: str


class Steps(Workflow):
    """Four steps; the third waits while a file says so."""

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Second:
        await begin(ctx, "first")
        return Second()

    @step
    async def second(self, ctx: Context, ev: Second) -> Third:
        await begin(ctx, "second")
        return Third()

    @step
    async def third(self, ctx: Context, ev: Third) -> Fourth:
        await begin(ctx, "third")
        while Path("slow").exists():
            await asyncio.sleep(0.01)
        return Fourth()

    @step
    async def fourth(self, ctx: Context, ev: Fourth) -> StopEvent:
        return await end(ctx, "fourth")


class FansOut(Workflow):
    """Eight parts between two steps."""

    @step
    async def split(self, ctx: Context, ev: StartEvent) -> Part | None:
        await begin(ctx, "split")
        for number in range(8):
            ctx.send_event(Part(number=number))
        return None

    @step(num_workers=8)
    async def work(self, ev: Part) -> Done:
        note("begin", f"work-{ev.number}")
        return Done(number=ev.number)

    @step
    async def collect(self, ctx: Context, ev: Done) -> Second | None:
        done = ctx.collect_events(ev, [Done] * 8)
        return None if done is None else Second()

    @step
    async def finish(self, ctx: Context, ev: Second) -> StopEvent:
        return await end(ctx, "finish")


class Approved(Workflow):
    """A plan and a draft, each approved by somebody."""

    @step
    async def plan(self, ctx: Context, ev: StartEvent) -> Second:
        await begin(ctx, "plan")
        return Second()

    @step
    async def approve_plan(self, ctx: Context, ev: Second) -> Third:
        approval = await ctx.wait_for_event(Approval, waiter_event=Ask(question="plan?"), waiter_id="plan")
        await begin(ctx, f"plan-by-{approval.by}")
        return Third()

    @step
    async def draft(self, ctx: Context, ev: Third) -> Fourth:
        await begin(ctx, "draft")
        return Fourth()

    @step
    async def approve_draft(self, ctx: Context, ev: Fourth) -> Part:
        approval = await ctx.wait_for_event(Approval, waiter_event=Ask(question="draft?"), waiter_id="draft")
        await begin(ctx, f"draft-by-{approval.by}")
        return Part(number=0)

    @step
    async def publish(self, ctx: Context, ev: Part) -> StopEvent:
        return await end(ctx, "publish")
