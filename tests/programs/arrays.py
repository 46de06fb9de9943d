"""Arrays of numpy in the state and in events, as a program that ranks by embeddings has them."""

from typing import Any

import numpy as np
from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class Embedded(Event):
    query: Any


class Ranked(Event):
    order: list[int]


class RankByEmbedding(Workflow):
    @step
    async def embed(self, ctx: Context, ev: StartEvent) -> Embedded:
        matrix = np.array(ev.vectors, dtype=np.float32)
        await ctx.store.set("matrix", matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
        return Embedded(query=np.array(ev.query))

    @step
    async def rank(self, ctx: Context, ev: Embedded) -> Ranked:
        scores = (await ctx.store.get("matrix")) @ ev.query
        return Ranked(order=np.argsort(-scores).tolist())

    @step
    async def finish(self, ctx: Context, ev: Ranked) -> StopEvent:
        await call("arrays/finish")
        matrix = await ctx.store.get("matrix")
        return StopEvent(result={"order": ev.order, "shape": list(matrix.shape)})
