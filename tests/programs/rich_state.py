"""Dataclasses, enums, dates, sets, bytes and tuples in an untyped state."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


@dataclass
class Reading:
    at: datetime
    value: float
    level: Level
    tags: set[str] = field(default_factory=set)


class Measured(Event):
    last: Reading


class Sensors(Workflow):
    @step
    async def measure(self, ctx: Context, ev: StartEvent) -> Measured:
        noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
        readings = [
            Reading(noon + timedelta(hours=n), value, Level.HIGH if value > 1 else Level.LOW, {"roof"})
            for n, value in enumerate(ev.numbers)
        ]
        await ctx.store.set("readings", readings)
        await ctx.store.set("raw", bytes([255, 0]))
        await ctx.store.set("place", Path("roof/north"))
        await ctx.store.set("range", (min(ev.numbers), max(ev.numbers)))
        await ctx.store.set("levels", {Level.HIGH: 1, Level.LOW: 2})
        return Measured(last=readings[-1])

    @step
    async def judge(self, ctx: Context, ev: Measured) -> StopEvent:
        await call("rich_state/judge")
        readings = await ctx.store.get("readings")
        low, high = await ctx.store.get("range")
        levels = await ctx.store.get("levels")
        return StopEvent(
            result={
                "same": readings[-1] == ev.last,
                "span": high - low,
                "high": sum(each.level is Level.HIGH for each in readings),
                "raw": (await ctx.store.get("raw")).hex(),
                "place": (await ctx.store.get("place")).name,
                "weight": levels[Level.HIGH],
                "days": (readings[-1].at - readings[0].at) / timedelta(days=1),
            }
        )
