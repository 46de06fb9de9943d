"""A workflow of four steps whose fourth fails until a file says that it is repaired."""

import asyncio
import os
import time
from pathlib import Path

from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


def note(word: str, name: str) -> None:
    """Append a line to the ledger."""
    ledger = os.open("ledger.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(ledger, f"{word} {name} {os.getpid()} {time.monotonic()}\n".encode())
    os.close(ledger)


class Second(Event):
    number: int


class Third(Event):
    number: int


class Fourth(Event):
    number: int


class Steps(Workflow):
    """Adds one in each step."""

    @step
    async def first(self, ev: StartEvent) -> Second:
        note("begin", "first")
        return Second(number=ev.get("number", 0) + 1)

    @step
    async def second(self, ev: Second) -> Third:
        note("begin", "second")
        return Third(number=ev.number + 1)

    @step
    async def third(self, ev: Third) -> Fourth:
        note("begin", "third")
        return Fourth(number=ev.number + 1)

    @step
    async def fourth(self, ev: Fourth) -> StopEvent:
        note("begin", "fourth")
        if not Path("repaired").exists():
            raise ValueError("the disk is full")
        while Path("slow").exists():
            await asyncio.sleep(0.01)
        return StopEvent(result=ev.number + 1)
