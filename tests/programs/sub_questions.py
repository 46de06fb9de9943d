"""Breaks a question into smaller ones, answers them with an agent each, and combines the answers."""

import json

from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class QueryEvent(Event):
    question: str


class AnswerEvent(Event):
    question: str
    answer: str


class FakeLLM:
    async def acomplete(self, prompt: str) -> str:
        if prompt.startswith("Split"):
            await call("sub_questions/split")
            return '{"sub_questions": ["who", "when", "where"]}'
        await call("sub_questions/combine")
        return " / ".join(line for line in prompt.splitlines() if line.startswith("Answer"))


class SubQuestionQueryEngine(Workflow):
    @step
    async def query(self, ctx: Context, ev: StartEvent) -> QueryEvent | None:
        if hasattr(ev, "query"):
            await ctx.store.set("original_query", ev.query)
        llm = FakeLLM()
        response = json.loads(await llm.acomplete(f"Split {ev.query}"))
        sub_questions = response["sub_questions"]
        await ctx.store.set("sub_question_count", len(sub_questions))
        for question in sub_questions:
            ctx.send_event(QueryEvent(question=question))
        return None

    @step
    async def sub_question(self, ctx: Context, ev: QueryEvent) -> AnswerEvent:
        await call(f"sub_questions/{ev.question}")
        ctx.write_event_to_stream(QueryEvent(question=ev.question))
        return AnswerEvent(question=ev.question, answer=f"the {ev.question}")

    @step
    async def combine_answers(self, ctx: Context, ev: AnswerEvent) -> StopEvent | None:
        ready = ctx.collect_events(ev, [AnswerEvent] * await ctx.store.get("sub_question_count"))
        if ready is None:
            return None
        answers = "\n".join(sorted(f"Answer to {each.question}: {each.answer}" for each in ready))
        prompt = f"Combine {await ctx.store.get('original_query')}\n{answers}"
        return StopEvent(result=await FakeLLM().acomplete(prompt))


engine = SubQuestionQueryEngine(timeout=120, verbose=True)
