"""A ReAct agent written by hand: it thinks, calls tools and observes, until it knows the answer."""

from collections.abc import Callable
from typing import Any

from llama_index.core.agent.react import ReActChatFormatter, ReActOutputParser
from llama_index.core.agent.react.types import (
    ActionReasoningStep,
    ObservationReasoningStep,
    ResponseReasoningStep,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool, ToolOutput, ToolSelection
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step
from tests.programs.outside import call


class PrepEvent(Event):
    pass


class InputEvent(Event):
    input: list[ChatMessage]


class StreamEvent(Event):
    delta: str


class ToolCallEvent(Event):
    tool_calls: list[ToolSelection]


class FakeLLM:
    """Plans by what it has observed so far."""

    async def chat(self, messages: list[ChatMessage]) -> str:
        observed = [m.content for m in messages if (m.content or "").startswith("Observation:")]
        await call(f"react_agent/llm-{len(observed)}")
        if not observed:
            return 'Thought: I add first.\nAction: add\nAction Input: {"a": 2, "b": 3}'
        if len(observed) == 1:
            return 'Thought: Then I multiply.\nAction: multiply\nAction Input: {"a": 5, "b": 4}'
        return f"Thought: I can answer.\nAnswer: {str(observed[-1]).removeprefix('Observation: ')}"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


class ReActAgent(Workflow):
    def __init__(self, *args: Any, tools: list[Callable[..., Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tools = [FunctionTool.from_defaults(tool) for tool in tools or [add, multiply]]
        self.llm = FakeLLM()
        self.formatter = ReActChatFormatter.from_defaults(context="")
        self.output_parser = ReActOutputParser()

    @step
    async def new_user_msg(self, ctx: Context, ev: StartEvent) -> PrepEvent:
        memory = await ctx.store.get("memory", default=None)
        if not memory:
            memory = ChatMemoryBuffer.from_defaults(token_limit=10_000)
        memory.put(ChatMessage(role="user", content=ev.input))
        await ctx.store.set("memory", memory)
        await ctx.store.set("current_reasoning", [])
        await ctx.store.set("sources", [])
        return PrepEvent()

    @step
    async def prepare_chat_history(self, ctx: Context, ev: PrepEvent) -> InputEvent:
        memory = await ctx.store.get("memory")
        reasoning = await ctx.store.get("current_reasoning")
        return InputEvent(input=self.formatter.format(self.tools, memory.get(), current_reasoning=reasoning))

    @step
    async def handle_llm_input(self, ctx: Context, ev: InputEvent) -> ToolCallEvent | PrepEvent | StopEvent:
        text = await self.llm.chat(ev.input)
        for line in text.splitlines():
            ctx.write_event_to_stream(StreamEvent(delta=line))
        reasoning_step = self.output_parser.parse(text)
        reasoning = await ctx.store.get("current_reasoning")
        reasoning.append(reasoning_step)
        await ctx.store.set("current_reasoning", reasoning)
        if isinstance(reasoning_step, ResponseReasoningStep):
            memory = await ctx.store.get("memory")
            memory.put(ChatMessage(role="assistant", content=reasoning_step.response))
            await ctx.store.set("memory", memory)
            return StopEvent(
                result={
                    "response": reasoning_step.response,
                    "sources": await ctx.store.get("sources"),
                    "reasoning": reasoning,
                }
            )
        if isinstance(reasoning_step, ActionReasoningStep):
            return ToolCallEvent(
                tool_calls=[
                    ToolSelection(
                        tool_id="fake",
                        tool_name=reasoning_step.action,
                        tool_kwargs=reasoning_step.action_input,
                    )
                ]
            )
        return PrepEvent()

    @step
    async def handle_tool_calls(self, ctx: Context, ev: ToolCallEvent) -> PrepEvent:
        tools_by_name = {tool.metadata.get_name(): tool for tool in self.tools}
        sources: list[ToolOutput] = await ctx.store.get("sources", default=[])
        reasoning = await ctx.store.get("current_reasoning", default=[])
        for tool_call in ev.tool_calls:
            output = tools_by_name[tool_call.tool_name](**tool_call.tool_kwargs)
            sources.append(output)
            reasoning.append(ObservationReasoningStep(observation=output.content))
        await ctx.store.set("sources", sources)
        await ctx.store.set("current_reasoning", reasoning)
        return PrepEvent()
