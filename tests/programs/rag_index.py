"""Builds an index in its first step and keeps it in `ctx.store`; the result is a Response of llama_index."""

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class Ingested(Event):
    query: str


class Retrieved(Event):
    query: str
    nodes: list[NodeWithScore]


class IngestAndQuery(Workflow):
    @step
    async def ingest(self, ctx: Context, ev: StartEvent) -> Ingested:
        documents = [Document(id_=f"doc-{n}", text=text) for n, text in enumerate(ev.texts)]
        index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))
        await ctx.store.set("index", index)
        return Ingested(query=ev.query)

    @step
    async def retrieve(self, ctx: Context, ev: Ingested) -> Retrieved:
        index = await ctx.store.get("index")
        retriever = index.as_retriever(similarity_top_k=2)
        return Retrieved(query=ev.query, nodes=await retriever.aretrieve(ev.query))

    @step
    async def synthesize(self, ev: Retrieved) -> StopEvent:
        await call("rag_index/synthesize")
        # The chunks have random ids, and each is as near as the other.
        text = "; ".join(sorted(each.text for each in ev.nodes))
        return StopEvent(result=Response(response=text, metadata={"query": ev.query}))


ingest_and_query = IngestAndQuery(timeout=60)
