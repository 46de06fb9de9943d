"""The workflows that are measured: as little work as possible, so that what remains is ours."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

ANSWER: Final = "ok"


class Echo(Workflow):
    """The trivial task: one step that answers."""

    @step
    async def answer(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - a step takes its event
        """Answer."""
        return StopEvent(result=ANSWER)


class CountTo(StartEvent):
    """How many events to stream."""

    events: int
    linger: float = 0.0
    """Seconds to go on after the last event."""


class Number(Event):
    """One streamed event."""

    number: int


class Count(Workflow):
    """Streams events as fast as it can."""

    @step
    async def count(self, ctx: Context, ev: CountTo) -> StopEvent:
        """Stream the numbers from 0."""
        for number in range(ev.events):
            ctx.write_event_to_stream(Number(number=number))
        if ev.linger:
            await asyncio.sleep(ev.linger)
        return StopEvent(result=ANSWER)


class TickFor(StartEvent):
    """How many events to stream, and when."""

    events: int
    delay: float
    """Seconds before the first."""
    pause: float
    """Seconds between two."""


class Tick(Event):
    """One streamed event."""

    written_at: float
    """By the monotonic clock, which the processes of a machine share."""


class Ticks(Workflow):
    """Streams events one after the other, as a model streams its tokens."""

    @step
    async def tick(self, ctx: Context, ev: TickFor) -> StopEvent:
        """Stream the present time, again and again."""
        for number in range(ev.events):
            await asyncio.sleep(ev.pause if number else ev.delay)
            ctx.write_event_to_stream(Tick(written_at=time.monotonic()))
        return StopEvent(result=ANSWER)


class Sleep(StartEvent):
    """How long to sleep."""

    seconds: float
    announce: bool = False
    """Whether to stream `Started` first."""


class Started(Event):
    """Tells where a task has started."""

    process_id: int


class Nap(Workflow):
    """Takes some time without any work, and answers with the process in which it ran."""

    @step
    async def sleep(self, ctx: Context, ev: Sleep) -> StopEvent:
        """Sleep."""
        if ev.announce:
            ctx.write_event_to_stream(Started(process_id=os.getpid()))
        await asyncio.sleep(ev.seconds)
        return StopEvent(result=os.getpid())


class Errand(StartEvent):
    """A task that others can tell from the rest."""

    number: int
    seconds: float
    events: int


class Run(Workflow):
    """Takes some time, tells of it, and answers with the number of the errand."""

    @step
    async def go(self, ctx: Context, ev: Errand) -> StopEvent:
        """Stream where it is, then numbers from 0."""
        ctx.write_event_to_stream(Started(process_id=os.getpid()))
        for number in range(ev.events):
            await asyncio.sleep(ev.seconds / ev.events)
            ctx.write_event_to_stream(Number(number=number))
        return StopEvent(result=ev.number)


class Begin(StartEvent):
    """How many steps to take."""

    steps: int


class Link(Event):
    """Leads from one step to the next."""

    left: int


class Chain(Workflow):
    """Takes one trivial step after the other."""

    @step
    async def begin(self, ev: Begin) -> Link:
        """Take the first step."""
        return Link(left=ev.steps - 1)

    @step
    async def go_on(self, ev: Link) -> Link | StopEvent:
        """Take another step."""
        return Link(left=ev.left - 1) if ev.left > 1 else StopEvent(result=ANSWER)


@dataclass(frozen=True, slots=True)
class Hosted:
    """A workflow, and how its service keeps its runs."""

    workflow: type[Workflow]
    durability: Literal["step", "task"] = "step"


WORKFLOWS: Final[Mapping[str, Hosted]] = MappingProxyType(
    {
        "echo": Hosted(Echo),
        "echo_by_step": Hosted(Echo),
        "echo_by_task": Hosted(Echo, "task"),
        "chain_by_step": Hosted(Chain),
        "chain_by_task": Hosted(Chain, "task"),
        "count": Hosted(Count),
        "errand": Hosted(Run),
        "nap": Hosted(Nap),
        "ticks": Hosted(Ticks),
    }
)
"""The workflows by the names of their services."""

echo = Echo(timeout=None)
"""An instance, for `llamactl serve benchmarks.workloads:echo`."""
