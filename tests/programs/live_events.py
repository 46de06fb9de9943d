"""Passes live objects from step to step: a retriever, a tool and an iterator."""

from collections.abc import Iterator
from typing import Any

from llama_index.core.tools import FunctionTool
from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Retriever:
    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def retrieve(self, word: str) -> list[str]:
        return [text for text in self.texts if word in text]


class Prepared(Event):
    retriever: Any
    tool: FunctionTool


class Found(Event):
    numbers: Any
    text: str


class PassesObjects(Workflow):
    @step
    async def prepare(self, ctx: Context, ev: StartEvent) -> Prepared:
        ctx.write_event_to_stream(Event(msg="preparing"))
        tool = FunctionTool.from_defaults(fn=lambda text: text.title(), name="title")
        return Prepared(retriever=Retriever(ev.texts), tool=tool)

    @step
    async def find(self, ctx: Context, ev: Prepared) -> Found:
        await call("live_events/find")
        found = ev.retriever.retrieve("sea")
        numbers: Iterator[int] = iter(range(10, 20))
        return Found(numbers=numbers, text=str(ev.tool(text=found[0])))

    @step
    async def finish(self, ev: Found) -> StopEvent:
        await call("live_events/finish")
        return StopEvent(result=f"{next(ev.numbers)} {ev.text}")
