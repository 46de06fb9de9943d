"""Corrective RAG: grades what it has retrieved, and searches elsewhere if too little is relevant.

The model, the index and the search tool live in `ctx.store`.
"""

from llama_index.core import Document, SummaryIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class PrepEvent(Event):
    pass


class RetrieveEvent(Event):
    retrieved_nodes: list[NodeWithScore]


class RelevanceEvalEvent(Event):
    relevant_results: list[str]


class TextExtractEvent(Event):
    relevant_text: str


class QueryEvent(Event):
    relevant_text: str
    search_text: str


class FakeLLM:
    async def acomplete(self, prompt: str) -> str:
        await call(f"corrective_rag/{prompt.partition(' ')[0]}")
        return "yes" if "tides" in prompt else "no"


class FakeSearch:
    def search(self, query: str) -> list[Document]:
        return [Document(text=f"The web about {query}")]


class CorrectiveRAGWorkflow(Workflow):
    @step
    async def prepare_for_retrieval(self, ctx: Context, ev: StartEvent) -> PrepEvent | None:
        query_str: str | None = ev.get("query_str")
        if query_str is None:
            return None
        await ctx.store.set("llm", FakeLLM())
        await ctx.store.set("index", SummaryIndex.from_documents([Document(text=t) for t in ev.texts]))
        await ctx.store.set("search", FakeSearch())
        await ctx.store.set("query_str", query_str)
        return PrepEvent()

    @step
    async def retrieve(self, ctx: Context, ev: PrepEvent) -> RetrieveEvent:
        index: SummaryIndex = await ctx.store.get("index")
        retriever: BaseRetriever = index.as_retriever()
        return RetrieveEvent(retrieved_nodes=retriever.retrieve(await ctx.store.get("query_str")))

    @step
    async def eval_relevance(self, ctx: Context, ev: RetrieveEvent) -> RelevanceEvalEvent:
        llm: FakeLLM = await ctx.store.get("llm")
        grades = [await llm.acomplete(f"grade {each.text}") for each in ev.retrieved_nodes]
        await ctx.store.set("retrieved", [each.text for each in ev.retrieved_nodes])
        return RelevanceEvalEvent(relevant_results=grades)

    @step
    async def extract_relevant_texts(self, ctx: Context, ev: RelevanceEvalEvent) -> TextExtractEvent:
        texts = await ctx.store.get("retrieved")
        relevant = [text for text, grade in zip(texts, ev.relevant_results, strict=True) if grade == "yes"]
        return TextExtractEvent(relevant_text="\n".join(relevant))

    @step
    async def transform_query_pipeline(self, ctx: Context, ev: TextExtractEvent) -> QueryEvent:
        search: FakeSearch = await ctx.store.get("search")
        await call("corrective_rag/search")
        documents = search.search(await ctx.store.get("query_str"))
        ctx.write_event_to_stream(TextExtractEvent(relevant_text=ev.relevant_text))
        return QueryEvent(relevant_text=ev.relevant_text, search_text=documents[0].text)

    @step
    async def query_result(self, ctx: Context, ev: QueryEvent) -> StopEvent:
        await call("corrective_rag/answer")
        return StopEvent(result=f"{ev.relevant_text} | {ev.search_text}")
