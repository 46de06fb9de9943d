"""Results of many kinds: a model, a dataclass, nodes, an enum, a set, nothing."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel
from tests.programs.outside import call
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Part(Event):
    kind: str


class Answer(BaseModel):
    text: str
    at: datetime


@dataclass
class Point:
    x: int
    label: str | None = None


class Colour(Enum):
    RED = "red"


class Results(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Part:
        return Part(kind=ev.kind)

    @step
    async def end(self, ev: Part) -> StopEvent:
        await call(f"results/{ev.kind}")
        match ev.kind:
            case "model":
                return StopEvent(result=Answer(text="yes", at=datetime(2026, 1, 2, tzinfo=UTC)))
            case "dataclass":
                return StopEvent(result=Point(x=1))
            case "nodes":
                node = TextNode(id_="n", text="sea", metadata={"page": 3})
                return StopEvent(result=[NodeWithScore(node=node, score=0.5)])
            case "enum":
                return StopEvent(result=Colour.RED)
            case "set":
                return StopEvent(result={1, 2})
            case _:
                return StopEvent()
