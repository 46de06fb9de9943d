"""Parts of workflows that fan out."""

from __future__ import annotations

from workflows import Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent


class Go(StartEvent):
    count: int


class Item(Event):
    number: int


class Done(Event):
    number: int


class Answer(HumanResponseEvent):
    number: int


class Splits(Workflow):
    """Begins with a list of items."""

    @step
    async def split(self, ev: Go) -> list[Item]:
        return [Item(number=number) for number in range(ev.count)]
