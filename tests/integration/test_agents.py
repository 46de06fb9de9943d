"""The agents of llama_index as services, unchanged, with a model that follows a script."""

# Without annotations as strings: llama_index looks for a tool's context in them.

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import memory as memories
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from workflows import Context, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig
from llama_deploy.client import TaskHandle
from llama_deploy.deploy import LocalStack
from llama_deploy.deploy.workflow import run_workflow
from llama_deploy.errors import TaskFailedError
from llama_deploy.services import AnyWorkflow
from tests.faults.programs.agent import ScriptedLLM, call, say, tool_results

# The library looks at deprecated names of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PATIENCE = 60.0


class Ledger:
    """An object that no codec knows, as a tool may hand it on."""

    def __str__(self) -> str:
        return "the ledger"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def look_up() -> Ledger:
    """Look into the ledger."""
    return Ledger()


async def confirm(ctx: Context) -> str:
    """Ask a human."""
    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="sure?"))
    return str(answer.response)


def sums(messages: list[ChatMessage]) -> ChatMessage:
    """Have 2 and 3 added, look into the ledger, and answer."""
    match tool_results(messages):
        case []:
            return call("add", a=2, b=3)
        case [_]:
            return call("look_up")
        case results:
            return say(f"it is {', '.join(results)}")


def react_sums(messages: list[ChatMessage]) -> ChatMessage:
    said = str(messages[-1].content)
    if said.startswith("Observation: "):
        return say(f"Thought: I know.\nAnswer: it is {said.removeprefix('Observation: ')}")
    return say('Thought: I add.\nAction: add\nAction Input: {"a": 2, "b": 3}')


def function_agent(llm: ScriptedLLM) -> Workflow:
    return FunctionAgent(tools=[add, look_up], llm=llm, system_prompt="Be brief.")


def agent_workflow(llm: ScriptedLLM) -> Workflow:
    return AgentWorkflow.from_tools_or_functions([add, look_up], llm=llm)


def react_agent(llm: ScriptedLLM) -> Workflow:
    return ReActAgent(tools=[add, look_up], llm=llm)


KINDS = pytest.mark.parametrize(
    ("make", "rule", "answer"),
    [
        (function_agent, sums, "it is 5, the ledger"),
        (agent_workflow, sums, "it is 5, the ledger"),
        (react_agent, react_sums, "it is 5"),
    ],
    ids=["FunctionAgent", "AgentWorkflow", "ReActAgent"],
)


@asynccontextmanager
async def core(folder: Path) -> AsyncIterator[LocalStack]:
    """Queue and control plane over the data in a folder."""
    plane = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{folder}/control_plane.db")
    queue = SimpleMessageQueueConfig(port=0)
    async with await LocalStack.start([], control_plane_config=plane, message_queue_config=queue) as stack:
        yield stack


@asynccontextmanager
async def instance(stack: LocalStack, workflow: AnyWorkflow, **settings: Any) -> AsyncIterator[None]:
    """An instance of the service `agent`, which reaches the others by HTTP."""
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="agent", **settings)
    ready = asyncio.Event()
    serving = asyncio.create_task(
        run_workflow(
            workflow, config, control_plane_url=stack.control_plane_url, on_ready=lambda _: ready.set()
        )
    )
    try:
        await asyncio.wait_for(ready.wait(), PATIENCE)
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving}, timeout=PATIENCE)


@asynccontextmanager
async def client_of(stack: LocalStack) -> AsyncIterator[Client]:
    async with Client(control_plane_url=stack.control_plane_url, timeout=PATIENCE) as client:
        yield client


@asynccontextmanager
async def serving(folder: Path, workflow: AnyWorkflow, **settings: Any) -> AsyncIterator[Client]:
    """A client of one instance, with everything that it needs."""
    async with core(folder) as stack, instance(stack, workflow, **settings), client_of(stack) as client:
        yield client


def spoken(output: Any) -> str:
    """Return what an agent has answered."""
    return "".join(block["text"] for block in output["response"]["blocks"] if "text" in block)


async def streamed(handle: TaskHandle) -> list[tuple[str, Any]]:
    return [(event.type, event.data) async for event in handle.events()]


@KINDS
@pytest.mark.parametrize("of_its_own", [False, True], ids=["an instance", "a factory"])
async def test_an_agent_runs_unchanged_and_streams(
    tmp_path: Path,
    make: Any,
    rule: Any,
    answer: str,
    of_its_own: bool,  # noqa: FBT001 - given by its name
    caplog: pytest.LogCaptureFixture,
) -> None:
    llm = ScriptedLLM(rule)
    async with serving(tmp_path, partial(make, llm) if of_its_own else make(llm)) as client:
        handle = await client.submit("agent", user_msg="what is 2 + 3?")
        assert answer in spoken(await handle.result())
        events = await streamed(handle)
    called = [data["tool_kwargs"] for type_, data in events if type_ == "ToolCall"]
    assert called[0] == {"a": 2, "b": 3}
    results = [data["tool_output"] for type_, data in events if type_ == "ToolCallResult"]
    assert results[0]["raw_output"] == 5
    assert "AgentStream" in {type_ for type_, _ in events}
    assert not [each for each in caplog.records if getattr(each, "action", "") == "shared_state"]
    if rule is sums:
        # What the tool made has no form in JSON; what it says does.
        assert (results[1]["blocks"][0]["text"], results[1]["raw_output"]) == ("the ledger", None)


@KINDS
async def test_the_chat_goes_on_in_another_instance_and_after_a_restart_of_everything(
    tmp_path: Path, make: Any, rule: Any, answer: str
) -> None:
    first, second, third = (ScriptedLLM(rule) for _ in range(3))
    async with core(tmp_path) as stack, client_of(stack) as client:
        session = await client.core.sessions.create()
        async with instance(stack, make(first)):
            await client.run("agent", session=session, user_msg="first question")
        async with instance(stack, make(second)):
            await client.run("agent", session=session, user_msg="second question")
    async with serving(tmp_path, make(third)) as client:
        output = await client.run("agent", session=session.id, user_msg="third question")
        assert answer in spoken(output)
    assert not [text for text in first.asked if "second" in text]
    for llm, questions in ((second, ["first", "second"]), (third, ["first", "second", "third"])):
        asked = llm.asked
        assert [text for text in asked if text.endswith("question")] == [f"{n} question" for n in questions]
        # What the agent itself has answered before is there too.
        assert len([text for text in asked if "it is 5" in text]) == len(questions) - 1


@KINDS
async def test_the_chat_goes_on_if_each_run_has_an_agent_of_its_own(
    tmp_path: Path, make: Any, rule: Any, answer: str
) -> None:
    llm = ScriptedLLM(rule)
    made: list[weakref.ref[Workflow]] = []

    def make_agent() -> Workflow:
        agent: Workflow = make(llm)
        made.append(weakref.ref(agent))
        return agent

    async with serving(tmp_path, make_agent) as client:
        session = await client.core.sessions.create()
        for question in ("first question", "second question"):
            assert answer in spoken(await client.run("agent", session=session, user_msg=question))
    asked = [text for text in llm.asked if text.endswith("question")]
    assert asked == ["first question", "second question"]
    gc.collect()
    assert len(made) == 3
    assert not [each for each in made[1:] if each() is not None]


async def test_agents_hand_over_to_each_other(tmp_path: Path) -> None:
    def receive(_: list[ChatMessage]) -> ChatMessage:
        return call("handoff", to_agent="adder", reason="numbers")

    def go_on(messages: list[ChatMessage]) -> ChatMessage:
        handed = ("tool_call_id", "handoff")
        return sums([each for each in messages if handed not in each.additional_kwargs.items()])

    desk, adder = ScriptedLLM(receive), ScriptedLLM(go_on)
    workflow = AgentWorkflow(
        agents=[
            FunctionAgent(name="desk", description="Receives.", tools=[], llm=desk),
            FunctionAgent(name="adder", description="Adds.", tools=[add, look_up], llm=adder),
        ],
        root_agent="desk",
    )
    async with serving(tmp_path, workflow) as client:
        session = await client.core.sessions.create()
        for turn in (1, 2):
            output = await client.run("agent", session=session, user_msg=f"question {turn}")
            assert spoken(output) == "it is 5, the ledger"
            assert output["current_agent_name"] == "adder"
    # The session stays with the agent that it was handed to.
    assert len(desk.seen) == 1
    assert [text for text in adder.asked if text.startswith("question")] == ["question 1", "question 2"]


@pytest.mark.parametrize("of_its_own", [False, True], ids=["an instance", "a factory"])
async def test_a_tool_asks_a_human_who_answers_after_a_restart(
    tmp_path: Path,
    of_its_own: bool,  # noqa: FBT001 - given by its name
) -> None:
    def rule(messages: list[ChatMessage]) -> ChatMessage:
        results = tool_results(messages)
        return say(f"you said {results[0]}") if results else call("confirm")

    def make() -> Workflow:
        return FunctionAgent(tools=[confirm], llm=ScriptedLLM(rule))

    async with serving(tmp_path, make if of_its_own else make(), idle_timeout=0.0) as client:
        handle = await client.submit("agent", user_msg="do it")
        async with aclosing(handle.events()) as events:
            while (await anext(events)).type != "InputRequiredEvent":
                pass
    async with serving(tmp_path, make if of_its_own else make()) as client:
        again = client.task(handle.task_id)
        await again.send(HumanResponseEvent(response="yes"))
        assert spoken(await again.result()) == "you said yes"


async def test_what_a_tool_is_given_beside_its_arguments_may_be_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def look(ledger: Ledger, page: int) -> dict[str, object]:
        """Look at a page."""
        return {"page": page, "of": ledger}

    def rule(messages: list[ChatMessage]) -> ChatMessage:
        results = tool_results(messages)
        return say(results[0]) if results else call("look", page=7)

    tool = FunctionTool.from_defaults(look, partial_params={"ledger": Ledger()})
    caplog.set_level(logging.DEBUG, "llama_deploy.codec")
    async with serving(tmp_path, FunctionAgent(tools=[tool], llm=ScriptedLLM(rule))) as client:
        handle = await client.submit("agent", user_msg="look")
        assert "'page': 7" in spoken(await handle.result())
        (result,) = [
            data["tool_output"] for type_, data in await streamed(handle) if type_ == "ToolCallResult"
        ]
    assert result["raw_output"] == {"page": 7, "of": None}
    assert result["raw_input"]["kwargs"] == {"page": 7, "ledger": None}
    assert "omitted what JSON cannot represent" in caplog.text
    assert "Ledger" in caplog.text


async def test_an_agent_with_a_memory_of_its_own(tmp_path: Path) -> None:
    class Remembering(FunctionAgent):
        memory: Any = None

        async def _init_context(self, ctx: Context, ev: Any) -> None:
            if await ctx.store.get("memory", default=None) is None:
                await ctx.store.set("memory", self.memory())
            await super()._init_context(ctx, ev)

    def agent(memory: Any) -> Workflow:
        return Remembering(tools=[add, look_up], llm=ScriptedLLM(sums), memory=memory)

    async with serving(
        tmp_path, agent(lambda: memories.ChatMemoryBuffer.from_defaults(token_limit=99))
    ) as client:
        session = await client.core.sessions.create()
        assert spoken(await client.run("agent", session=session, user_msg="a")) == "it is 5, the ledger"
        assert spoken(await client.run("agent", session=session, user_msg="b")) == "it is 5, the ledger"


async def test_a_chat_is_brought_along(tmp_path: Path) -> None:
    llm = ScriptedLLM(sums)
    history = [ChatMessage(role="user", content="before"), ChatMessage(role="assistant", content="so it was")]
    async with serving(tmp_path, function_agent(llm)) as client:
        output = await client.run("agent", user_msg="and now", chat_history=history)
    assert spoken(output) == "it is 5, the ledger"
    assert llm.asked[:3] == ["before", "so it was", "and now"]


class Counter(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library's signature
        memory = await ctx.store.get("memory")
        return StopEvent(result=len(memory.get_all()))


async def test_another_workflow_of_the_session_reads_the_chat_if_it_declares_it(tmp_path: Path) -> None:
    async with core(tmp_path) as stack, client_of(stack) as client:
        session = await client.core.sessions.create()
        async with instance(stack, react_agent(ScriptedLLM(react_sums))):
            await client.run("agent", session=session, user_msg="2 + 3")
        async with instance(stack, Counter()):
            with pytest.raises(TaskFailedError, match="ChatMemoryBuffer', which is not declared"):
                await client.run("agent", session=session)
        async with instance(stack, Counter(), allowed_types=["llama_index.core.memory.ChatMemoryBuffer"]):
            assert await client.run("agent", session=session) >= 2
