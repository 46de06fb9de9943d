"""A chat of several turns: the history is in the state, so each turn knows the earlier ones."""

from llama_index.core.llms import ChatMessage
from tests.programs.outside import call
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent


class AnswerEvent(Event):
    text: str


class ChatWorkflow(Workflow):
    @step
    async def listen(self, ctx: Context, ev: StartEvent) -> AnswerEvent:
        history: list[ChatMessage] = await ctx.store.get("history", default=[])
        history.append(ChatMessage(role="user", content=ev.message))
        await ctx.store.set("history", history)
        return AnswerEvent(text=f"{len(history)}: {ev.message}?")

    @step
    async def speak(self, ctx: Context, ev: AnswerEvent) -> StopEvent:
        await call(f"chat/{ev.text[:1]}")
        history: list[ChatMessage] = await ctx.store.get("history")
        history.append(ChatMessage(role="assistant", content=ev.text))
        await ctx.store.set("history", history)
        ctx.write_event_to_stream(ev)
        return StopEvent(result=history)


chat = ChatWorkflow()
