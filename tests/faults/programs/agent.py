"""An agent of llama_index with a scripted model, whose tools write into a ledger outside of the system."""

# Without annotations as strings: llama_index looks for a tool's context in them.
import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms.mock import MockFunctionCallingLLM
from workflows import Context
from workflows.events import HumanResponseEvent, InputRequiredEvent

from llama_deploy import ControlPlaneConfig, WorkflowServiceConfig, deploy_workflow

Rule = Callable[[list[ChatMessage]], ChatMessage]


class RawAnswer:
    """What the client of a model's maker returns: of a class that nobody has declared."""


class ScriptedLLM(MockFunctionCallingLLM):
    """Answers by a rule, and keeps what it was asked in `seen`."""

    def __init__(self, rule: Rule) -> None:
        seen: list[list[ChatMessage]] = []

        def respond(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
            seen.append([ChatMessage(role=each.role, blocks=list(each.blocks)) for each in messages])
            return rule(list(messages))

        super().__init__(response_generator=respond, is_chat_model=True)
        self._seen = seen

    @property
    def seen(self) -> list[list[ChatMessage]]:
        return self._seen

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        answers = await super().astream_chat(messages, **kwargs)

        async def with_raw() -> Any:
            async for answer in answers:
                yield ChatResponse(message=answer.message, delta=answer.delta, raw=RawAnswer())

        return with_raw()

    @property
    def asked(self) -> list[str]:
        """What stood in the messages of the last call, but for the system's."""
        return [str(each.content) for each in self._seen[-1] if each.role != MessageRole.SYSTEM]


def call(*names: str, **arguments: object) -> ChatMessage:
    """Return an answer that asks for tools to be called."""
    blocks = [ToolCallBlock(tool_call_id=name, tool_name=name, tool_kwargs=arguments) for name in names]
    return ChatMessage(role="assistant", blocks=blocks)


def say(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def tool_results(messages: list[ChatMessage]) -> list[str]:
    """Return what tools have answered since the user spoke last."""
    results: list[str] = []
    for message in messages:
        if message.role == MessageRole.USER:
            results = []
        elif message.role == MessageRole.TOOL:
            results.append(str(message.content))
    return results


def note(word: str, name: str) -> None:
    """Append a line to the ledger, in one write, so that lines of several processes do not mix."""
    line = f"{time.time():.3f} {word} {name} {os.getpid()}\n"
    with open(os.environ["LEDGER"], "ab", buffering=0) as ledger:  # noqa: PTH123 - unbuffered
        ledger.write(line.encode())


def times(word: str, name: str) -> int:
    with open(os.environ["LEDGER"]) as ledger:  # noqa: PTH123 - as above
        return sum(line.split()[1:3] == [word, name] for line in ledger)


async def quick() -> str:
    """Answer at once."""
    note("begin", "quick")
    note("end", "quick")
    return "one"


async def slow() -> str:
    """Answer at the second call only; the process is killed in the first."""
    note("begin", "slow")
    if times("begin", "slow") == 1:
        await asyncio.Event().wait()
    note("end", "slow")
    return "two"


async def ask(ctx: Context) -> str:
    """Ask a human."""
    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="sure?"))
    note("end", "ask")
    return str(answer.response)


TOOLS = {"quick": quick, "slow": slow, "ask": ask}


def rule(messages: list[ChatMessage]) -> ChatMessage:
    """Call the tools that the user names: one by one, or at once those with `+` between them."""
    question = next(each for each in reversed(messages) if each.role == "user").content or ""
    plan = question.split()
    results = tool_results(messages)
    begun = 0
    for names in plan:
        if begun == len(results):
            return call(*names.split("+"))
        begun += len(names.split("+"))
    return say(" ".join(results))


def react_rule(messages: list[ChatMessage]) -> ChatMessage:
    said = [str(each.content) for each in messages if each.role != "system"]
    results = [text.removeprefix("Observation: ") for text in said if text.startswith("Observation: ")]
    plan = next(text for text in said if set(text.split()) <= TOOLS.keys()).split()
    if len(results) < len(plan):
        return say(f"Thought: on.\nAction: {plan[len(results)]}\nAction Input: {{}}")
    return say(f"Thought: done.\nAnswer: {' '.join(results)}")


def build(kind: str) -> AgentWorkflow | FunctionAgent | ReActAgent:
    tools: list[Any] = list(TOOLS.values())
    if kind == "ReActAgent":
        return ReActAgent(tools=tools, llm=ScriptedLLM(react_rule))
    if kind == "AgentWorkflow":
        return AgentWorkflow.from_tools_or_functions(tools, llm=ScriptedLLM(rule))
    return FunctionAgent(tools=tools, llm=ScriptedLLM(rule))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0)
    asyncio.run(deploy_workflow(build(os.environ["KIND"]), config, ControlPlaneConfig()))
