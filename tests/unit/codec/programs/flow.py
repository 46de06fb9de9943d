"""A workflow that is paused in the middle by one process and goes on in another.

`python flow.py pause FILE` runs as a script, so its classes are in `__main__`; who imports it as a module
finds them all the same.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.codec import TypedJson, TypedSerializer, TypeRegistry, declared_types


class Passages(Event):
    nodes: list[NodeWithScore]


class Approved(HumanResponseEvent):
    answer: str


class Asked(InputRequiredEvent):
    passages: Passages


class Note(BaseModel):
    """No annotation speaks of it."""

    words: tuple[str, ...]


class State(BaseModel):
    seen: set[str] = set()
    last: Passages | None = None
    anything: Any = None


class Flow(Workflow):
    @step
    async def retrieve(self, ctx: Context[State], ev: StartEvent) -> Passages:
        passages = Passages(nodes=[NodeWithScore(node=TextNode(text="t", id_="1"), score=0.5)])
        async with ctx.store.edit_state() as state:
            state.seen.add("retrieve")
            state.last = passages
            state.anything = {"note": Note(words=("a", "b"))}
        return passages

    @step
    async def ask(self, ctx: Context[State], ev: Passages) -> StopEvent:
        approved = await ctx.wait_for_event(
            Approved, waiter_event=Asked(passages=ev), waiter_id="w", timeout=None
        )
        state = await ctx.store.get_state()
        found = {
            "answer": approved.answer,
            "node": type(ev.nodes[0].node).__name__,
            "kept": type(state.last.nodes[0].node).__name__ if state.last else None,
            "seen": sorted(state.seen),
            "words": state.anything["note"].words,
        }
        return StopEvent(result=found)


def serializer() -> TypedSerializer:
    return TypedSerializer(TypedJson(TypeRegistry(declared_types(Flow(), [Approved]))))


async def pause() -> dict[str, Any]:
    handler = Flow(serializer=serializer()).run()
    async for event in handler.stream_events():
        if isinstance(event, Asked):
            break
    snapshot = handler.ctx.to_dict()
    await handler.cancel_run()
    return snapshot


async def resume(snapshot: dict[str, Any]) -> dict[str, Any]:
    flow = Flow(serializer=serializer())
    handler = flow.run(ctx=Context.from_dict(flow, snapshot))
    await handler.send_event(Approved(answer="yes"))
    return await handler


if __name__ == "__main__":
    action, file = sys.argv[1], Path(sys.argv[2])
    if action == "pause":
        file.write_text(json.dumps(asyncio.run(pause())))
    else:
        print(json.dumps(asyncio.run(resume(json.loads(file.read_text())))))
