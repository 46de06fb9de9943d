"""Values that a workflow meets while it runs, written by one process and read by another.

`python late.py write FILE` makes the codec as a service does when it starts, and only then the values; what
is refused is written with its reason. `python late.py read FILE` prints what another process finds.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import llama_index.core
from llama_index.core import llms, schema
from pydantic import BaseModel
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.codec import TypedJson, TypeRegistry, declared_types
from llama_deploy.errors import SerializationError

T = TypeVar("T")


class Shape(BaseModel):
    name: str = "s"


class Square(Shape):
    side: int = 1


class Box(BaseModel, Generic[T]):
    content: T


class ShapeError(Exception):
    pass


class Found(Event):
    nodes: list[Any]
    named: Box[int] | None = None


SquareBox = Box[Square]


class Flow(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()

    @step
    async def other(self, ev: Found) -> StopEvent:
        return StopEvent()


def codec() -> TypedJson:
    return TypedJson(TypeRegistry(declared_types(Flow())))


def values() -> Iterator[tuple[str, Any]]:
    class Circle(Shape):
        radius: int = 1

    class LateError(ShapeError):
        pass

    yield "subclass", Square(side=2)
    yield "late subclass", Circle(radius=5)
    yield "late class itself", Circle
    yield "late exception", LateError("late")
    yield "named generic", SquareBox(content=Square(side=3))
    yield "annotated generic", Box[int](content=1)
    yield "late generic", Box[Shape](content=Shape())
    yield "late generic of a late class", Box[Circle](content=Circle())
    yield "nodes", Found(nodes=[schema.NodeWithScore(node=node, score=0.5) for node in nodes()])
    yield "message", {"chat": llms.ChatMessage("hi"), "block": llms.TextBlock(text="t")}


def nodes() -> list[Any]:
    return [
        schema.TextNode(text="t"),
        schema.IndexNode(text="t", index_id="i"),
        llama_index.core.Document(text="d"),
    ]


def write() -> dict[str, Any]:
    typed = codec()
    written: dict[str, Any] = {}
    for name, value in values():
        try:
            written[name] = {"text": typed.dumps(value)}
        except SerializationError as exc:
            written[name] = {"refused": str(exc)}
    return written


def read(written: dict[str, Any]) -> dict[str, str]:
    typed = codec()
    return {name: repr(typed.loads(entry["text"])) for name, entry in written.items() if "text" in entry}


if __name__ == "__main__":
    action, file = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        file.write_text(json.dumps(write()))
    else:
        print(json.dumps(read(json.loads(file.read_text()))))
