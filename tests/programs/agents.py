"""The agents of llama_index with a model that follows a rule: two agents that hand over, and one alone."""

from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from tests.programs.outside import call
from workflows import Context


async def search_web(ctx: Context, topic: str) -> str:
    """Search the web, and note what was found."""
    await call("research_team/search")
    async with ctx.store.edit_state() as state:
        state["state"]["notes"] = [*state["state"]["notes"], f"found {topic}"]
    return f"facts on {topic}"


async def write_report(ctx: Context, text: str) -> str:
    """Write the report."""
    await call("research_team/write")
    async with ctx.store.edit_state() as state:
        state["state"]["report"] = text
    return "written"


def ask_tool(name: str, **arguments: Any) -> ChatMessage:
    block = ToolCallBlock(tool_call_id=name, tool_name=name, tool_kwargs=arguments)
    return ChatMessage(role="assistant", blocks=[block])


def research(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    if messages[-1].role == "tool":
        return ask_tool("handoff", to_agent="writer", reason="the facts are there")
    return ask_tool("search_web", topic="tides")


def write(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    said = [str(message.content) for message in messages if message.role == "tool"]
    if said[-1] != "written":
        return ask_tool("write_report", text=next(text for text in said if text.startswith("facts")))
    return ChatMessage(role="assistant", content="The report is written.")


def make_team() -> AgentWorkflow:
    researcher = FunctionAgent(
        name="researcher",
        description="Searches the web.",
        tools=[search_web],
        llm=MockFunctionCallingLLM(response_generator=research, is_chat_model=True),
        can_handoff_to=["writer"],
    )
    writer = FunctionAgent(
        name="writer",
        description="Writes reports.",
        tools=[write_report],
        llm=MockFunctionCallingLLM(response_generator=write, is_chat_model=True),
    )
    return AgentWorkflow(
        agents=[researcher, writer],
        root_agent="researcher",
        initial_state={"notes": [], "report": "none"},
    )


async def convert(celsius: float) -> str:
    """Convert a temperature to Fahrenheit."""
    await call("assistant/convert")
    return f"{celsius * 1.8 + 32:g} F"


def assist(messages: list[ChatMessage], **kwargs: Any) -> ChatMessage:
    if messages[-1].role == "tool":
        return ChatMessage(role="assistant", content=f"It is {messages[-1].content}.")
    return ask_tool("convert", celsius=20)


assistant = FunctionAgent(
    tools=[convert], llm=MockFunctionCallingLLM(response_generator=assist, is_chat_model=True)
)
