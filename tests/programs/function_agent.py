"""A function-calling agent written by hand: the model asks for tools, which run beside each other."""

from typing import Any

from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool, ToolOutput, ToolSelection
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class InputEvent(Event):
    input: list[ChatMessage]


class ToolCallEvent(Event):
    tool_calls: list[ToolSelection]


class FunctionOutputEvent(Event):
    output: ToolOutput


def weather(city: str) -> str:
    """Say the weather of a city."""
    return f"sunny in {city}"


def answer(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    """Answer in place of a model: ask for the weather, then repeat what the tools said."""
    said = [str(message.content) for message in messages if message.role == "tool"]
    if said:
        return ChatMessage(role="assistant", content=" and ".join(said))
    blocks = [
        ToolCallBlock(tool_call_id=city, tool_name="weather", tool_kwargs={"city": city})
        for city in ("Oslo", "Rome")
    ]
    return ChatMessage(role="assistant", blocks=blocks)


class FunctionCallingAgent(Workflow):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tools = [FunctionTool.from_defaults(weather)]
        self.llm = MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)

    @step
    async def prepare_chat_history(self, ctx: Context, ev: StartEvent) -> InputEvent:
        await ctx.store.set("sources", [])
        memory = await ctx.store.get("memory", default=None)
        if not memory:
            memory = ChatMemoryBuffer.from_defaults(llm=self.llm)
        memory.put(ChatMessage(role="user", content=ev.input))
        await ctx.store.set("memory", memory)
        return InputEvent(input=memory.get())

    @step
    async def handle_llm_input(self, ctx: Context, ev: InputEvent) -> ToolCallEvent | StopEvent:
        await call(f"function_agent/llm-{len(ev.input)}")
        response = await self.llm.achat_with_tools(self.tools, chat_history=ev.input)
        memory = await ctx.store.get("memory")
        memory.put(response.message)
        await ctx.store.set("memory", memory)
        tool_calls = self.llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        if not tool_calls:
            sources = await ctx.store.get("sources", default=[])
            return StopEvent(result={"response": response, "sources": [*sources]})
        return ToolCallEvent(tool_calls=tool_calls)

    @step
    async def handle_tool_calls(self, ctx: Context, ev: ToolCallEvent) -> InputEvent:
        memory = await ctx.store.get("memory")
        sources = await ctx.store.get("sources", default=[])
        for tool_call in ev.tool_calls:
            output = self.tools[0](**tool_call.tool_kwargs)
            sources.append(output)
            memory.put(
                ChatMessage(
                    role="tool",
                    content=output.content,
                    additional_kwargs={"tool_call_id": tool_call.tool_id, "name": tool_call.tool_name},
                )
            )
        await ctx.store.set("sources", sources)
        await ctx.store.set("memory", memory)
        return InputEvent(input=memory.get())


agent = FunctionCallingAgent(timeout=120)
