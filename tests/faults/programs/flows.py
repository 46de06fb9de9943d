"""The workflows that the fault tests run; each step notes in a ledger when it begins and when it ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent
from workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

ITEMS = 50
WORKERS = 8
"""How many items of a fan-out are worked on at a time."""
RETRIES = 2


def note(word: str, task: str, step_name: str) -> None:
    """Append a line to the ledger, in one write, so that lines of several processes do not mix."""
    # The monotonic clock of Linux is one for all processes.
    line = f"{time.monotonic():.6f} {word} {task} {step_name} {os.getpid()}\n"
    with open(os.environ["LEDGER"], "ab", buffering=0) as ledger:  # noqa: PTH123 - unbuffered
        ledger.write(line.encode())


class Progress(Event):
    """Streamed by a step when it has done its work."""

    step: str
    pid: int


class Ask(InputRequiredEvent):
    question: str


class Answer(HumanResponseEvent):
    text: str


async def work(ctx: Context, task: str, step_name: str, seconds: float) -> None:
    """Do a step's work: take `seconds`, and leave a line in the ledger before and after."""
    note("begin", task, step_name)
    await asyncio.sleep(seconds)
    ctx.write_event_to_stream(Progress(step=step_name, pid=os.getpid()))
    note("end", task, step_name)


async def remember(ctx: Context, step_name: str) -> str:
    """Add a step to the run's state, and return all that are in it."""
    seen: list[str] = await ctx.store.get("seen", default=[])
    await ctx.store.set("seen", [*seen, step_name])
    return ">".join([*seen, step_name])


class Job(StartEvent):
    """The arguments of all these workflows."""

    name: str
    seconds: float = 0.1


class Two(Event):
    job: Job


class Three(Event):
    job: Job


class Four(Event):
    job: Job


class Five(Event):
    job: Job


class Chain(Workflow):
    """Five steps that remember themselves in the run's state."""

    @step
    async def one(self, ctx: Context, ev: Job) -> Two:
        await work(ctx, ev.name, "one", ev.seconds)
        await remember(ctx, "one")
        return Two(job=ev)

    @step
    async def two(self, ctx: Context, ev: Two) -> Three:
        await work(ctx, ev.job.name, "two", ev.job.seconds)
        await remember(ctx, "two")
        return Three(job=ev.job)

    @step
    async def three(self, ctx: Context, ev: Three) -> Four:
        await work(ctx, ev.job.name, "three", ev.job.seconds)
        await remember(ctx, "three")
        return Four(job=ev.job)

    @step
    async def four(self, ctx: Context, ev: Four) -> Five:
        await work(ctx, ev.job.name, "four", ev.job.seconds)
        await remember(ctx, "four")
        return Five(job=ev.job)

    @step
    async def five(self, ctx: Context, ev: Five) -> StopEvent:
        await work(ctx, ev.job.name, "five", ev.job.seconds)
        return StopEvent(result=f"{ev.job.name}: {await remember(ctx, 'five')}")


class Item(Event):
    job: Job
    n: int


class Square(Event):
    job: Job
    value: int


class Fan(Workflow):
    """A fan-out by a list that is returned, joined by a list that is taken."""

    @step
    async def split(self, ctx: Context, ev: Job) -> list[Item]:
        await work(ctx, ev.name, "split", 0)
        return [Item(job=ev, n=n) for n in range(ITEMS)]

    @step(num_workers=WORKERS)
    async def square(self, ctx: Context, ev: Item) -> Square:
        await work(ctx, ev.job.name, f"item-{ev.n}", ev.job.seconds)
        return Square(job=ev.job, value=ev.n**2)

    @step
    async def join(self, ctx: Context, evs: list[Square]) -> StopEvent:
        job = evs[0].job
        await work(ctx, job.name, "join", job.seconds)
        return StopEvent(result=f"{job.name}: {sum(each.value for each in evs)}")


class Collect(Workflow):
    """A fan-out by events that are sent one after the other, joined by `collect_events`."""

    @step
    async def split(self, ctx: Context, ev: Job) -> Item | None:
        note("begin", ev.name, "split")
        for n in range(ITEMS):
            ctx.send_event(Item(job=ev, n=n))
            await asyncio.sleep(ev.seconds / ITEMS)
        note("end", ev.name, "split")
        return None

    @step(num_workers=WORKERS)
    async def square(self, ctx: Context, ev: Item) -> Square:
        await work(ctx, ev.job.name, f"item-{ev.n}", ev.job.seconds)
        return Square(job=ev.job, value=ev.n**2)

    @step
    async def join(self, ctx: Context, ev: Square) -> StopEvent | None:
        squares = ctx.collect_events(ev, [Square] * ITEMS)
        if squares is None:
            return None
        await work(ctx, ev.job.name, "join", ev.job.seconds)
        return StopEvent(result=f"{ev.job.name}: {sum(each.value for each in squares)}")


class Prepared(Event):
    job: Job


class Answered(Event):
    job: Job
    text: str


class Human(Workflow):
    """Waits for a person in the middle of a step."""

    is_live = False

    @step
    async def prepare(self, ctx: Context, ev: Job) -> Prepared:
        if self.is_live:
            await ctx.store.set("lock", threading.Lock())
        await work(ctx, ev.name, "prepare", ev.seconds)
        return Prepared(job=ev)

    @step
    async def ask(self, ctx: Context, ev: Prepared) -> Answered:
        answer = await ctx.wait_for_event(Answer, waiter_event=Ask(question=ev.job.name))
        # What stands above runs again when the answer comes, so the step's work begins here.
        await work(ctx, ev.job.name, "ask", ev.job.seconds)
        return Answered(job=ev.job, text=answer.text)

    @step
    async def finish(self, ctx: Context, ev: Answered) -> StopEvent:
        await work(ctx, ev.job.name, "finish", ev.job.seconds)
        return StopEvent(result=f"{ev.job.name}: {ev.text}")


class Volatile(Human):
    """Keeps something in its store that cannot be stored, and waits for a person."""

    is_live = True


class Tried(Event):
    job: Job
    retries: int


class Flaky(Workflow):
    """Fails twice in a step that is retried after a delay."""

    @step(retry_policy=retry_policy(wait=wait_fixed(0.3), stop=stop_after_attempt(5)))
    async def tried(self, ctx: Context, ev: Job) -> Tried:
        retries = ctx.retry_info().retry_number
        await work(ctx, ev.name, f"try-{retries}", ev.seconds)
        if retries < RETRIES:
            raise RuntimeError(f"fails on purpose, {retries} retries so far")
        return Tried(job=ev, retries=retries)

    @step
    async def finish(self, ctx: Context, ev: Tried) -> StopEvent:
        await work(ctx, ev.job.name, "finish", ev.job.seconds)
        return StopEvent(result=f"{ev.job.name}: {ev.retries} retries")


FLOWS: dict[str, type[Workflow]] = {
    "chain": Chain,
    "fan": Fan,
    "collect": Collect,
    "human": Human,
    "flaky": Flaky,
    "volatile": Volatile,
}
"""The workflows by the names of their services."""
