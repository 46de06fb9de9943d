"""Research in rounds: plans, answers in parallel, plans again, and streams what a user interface shows."""

from typing import Literal

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel
from tests.programs.outside import call


class UIEventData(BaseModel):
    event: Literal["retrieve", "analyze", "answer"]
    state: Literal["pending", "inprogress", "done"]
    question: str | None = None


class UIEvent(Event):
    type: str = "ui_event"
    data: UIEventData


class SourceNodesEvent(Event):
    nodes: list[NodeWithScore]


class PlanResearchEvent(Event):
    pass


class ResearchEvent(Event):
    question_id: str
    question: str


class CollectAnswersEvent(Event):
    question_id: str
    answer: str


class ReportEvent(Event):
    pass


class DeepResearchWorkflow(Workflow):
    def __init__(self, timeout: float = 120.0) -> None:
        super().__init__(timeout=timeout)
        self.index = [TextNode(id_="tides", text="The moon moves the sea.")]

    @step
    async def retrieve(self, ctx: Context, ev: StartEvent) -> PlanResearchEvent:
        memory = ChatMemoryBuffer.from_defaults(token_limit=5000)
        memory.put(ChatMessage(role=MessageRole.USER, content=ev.user_msg))
        await ctx.store.set("memory", memory)
        await ctx.store.set("user_request", ev.user_msg)
        await ctx.store.set("total_questions", 0)
        ctx.write_event_to_stream(UIEvent(data=UIEventData(event="retrieve", state="inprogress")))
        nodes = [NodeWithScore(node=node, score=1.0) for node in self.index]
        await ctx.store.set("context_nodes", nodes)
        ctx.write_event_to_stream(SourceNodesEvent(nodes=nodes))
        return PlanResearchEvent()

    @step
    async def analyze(self, ctx: Context, ev: PlanResearchEvent) -> ResearchEvent | ReportEvent | None:
        total = await ctx.store.get("total_questions")
        await call(f"deep_research/plan-{total}")
        if total >= 2:
            return ReportEvent()
        await ctx.store.set("total_questions", total + 2)
        await ctx.store.set("n_questions", 2)
        for n in range(2):
            question = f"question {n}"
            data = UIEventData(event="answer", state="pending", question=question)
            ctx.write_event_to_stream(UIEvent(data=data))
            ctx.send_event(ResearchEvent(question_id=str(n), question=question))
        return None

    @step(num_workers=2)
    async def answer(self, ctx: Context, ev: ResearchEvent) -> CollectAnswersEvent:
        await call(f"deep_research/answer-{ev.question_id}")
        nodes: list[NodeWithScore] = await ctx.store.get("context_nodes")
        text = nodes[0].node.get_content(metadata_mode=MetadataMode.LLM)
        data = UIEventData(event="answer", state="done", question=ev.question)
        ctx.write_event_to_stream(UIEvent(data=data))
        return CollectAnswersEvent(question_id=ev.question_id, answer=text)

    @step
    async def collect(self, ctx: Context, ev: CollectAnswersEvent) -> PlanResearchEvent | None:
        answers = ctx.collect_events(ev, [CollectAnswersEvent] * await ctx.store.get("n_questions"))
        if answers is None:
            return None
        memory: ChatMemoryBuffer = await ctx.store.get("memory")
        for each in sorted(answers, key=lambda each: each.question_id):
            memory.put(ChatMessage(role=MessageRole.ASSISTANT, content=each.answer))
        await ctx.store.set("memory", memory)
        return PlanResearchEvent()

    @step
    async def report(self, ctx: Context, ev: ReportEvent) -> StopEvent:
        await call("deep_research/report")
        memory: ChatMemoryBuffer = await ctx.store.get("memory")
        return StopEvent(result="\n".join(str(message.content) for message in memory.get_all()))


def create_workflow() -> Workflow:
    return DeepResearchWorkflow(timeout=120.0)
