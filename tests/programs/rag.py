"""Answers questions over documents: retrieve, rerank, synthesize; nodes travel in the events."""

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call

DOCUMENTS = {
    "moon": "The moon causes the tides of the sea.",
    "wind": "The wind causes the waves of the sea.",
    "bread": "Bread needs flour, water and time.",
}


class RetrieverEvent(Event):
    nodes: list[NodeWithScore]


class RerankEvent(Event):
    nodes: list[NodeWithScore]


class RAGWorkflow(Workflow):
    def __init__(self, top_k: int = 2) -> None:
        super().__init__(timeout=120)
        self.top_k = top_k
        self.index = [TextNode(id_=name, text=text) for name, text in DOCUMENTS.items()]

    @step
    async def retrieve(self, ctx: Context, ev: StartEvent) -> RetrieverEvent:
        await call("rag/retrieve")
        words = set(ev.query.lower().split())
        await ctx.store.set("query", ev.query)
        nodes = [
            NodeWithScore(node=node, score=float(len(words & set(node.text.lower().split()))))
            for node in self.index
        ]
        return RetrieverEvent(nodes=nodes)

    @step
    async def rerank(self, ctx: Context, ev: RetrieverEvent) -> RerankEvent:
        await call("rag/rerank")
        nodes = sorted(ev.nodes, key=lambda each: each.get_score(), reverse=True)[: self.top_k]
        ctx.write_event_to_stream(RerankEvent(nodes=nodes))
        return RerankEvent(nodes=nodes)

    @step
    async def synthesize(self, ctx: Context, ev: RerankEvent) -> StopEvent:
        await call("rag/synthesize")
        sources = ", ".join(each.node.node_id for each in ev.nodes)
        return StopEvent(result=f"{await ctx.store.get('query')} See: {sources}.")
