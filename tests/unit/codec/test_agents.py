"""What the agents of llama_index hold: what is carried whole, as far as possible, and not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.react.types import ActionReasoningStep, ObservationReasoningStep
from llama_index.core.agent.workflow import AgentOutput, FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.tools import ToolOutput
from pydantic import BaseModel
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.codec import TypedJson, TypeRegistry, declared_types
from llama_deploy.codec.agents import agent_types, is_agent
from llama_deploy.codec.reducing import reduced, with_reduced_fields
from llama_deploy.errors import SerializationError
from llama_deploy.services.values.payloads import streamed_event

# The library looks at deprecated names of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class OwnAgent(FunctionAgent):
    pass


class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library's signature
        return StopEvent()


class Handle:
    """Carried by nobody."""


class Answer(BaseModel):
    """Declared by nobody."""

    text: str
    score: float = 0.5


@pytest.fixture
def codec() -> TypedJson:
    return TypedJson(TypeRegistry(declared_types(FunctionAgent(llm=MockLLM()))))


def through(codec: TypedJson, value: Any) -> Any:
    return codec.loads(codec.dumps(value))


def tool_result(raw_output: object, **raw_input: object) -> ToolCallResult:
    output = ToolOutput(tool_name="look", content="seen", raw_input=raw_input, raw_output=raw_output)
    return ToolCallResult(
        tool_name="look", tool_kwargs={}, tool_id="1", tool_output=output, return_direct=False
    )


def test_only_agents_bring_the_types_of_agents() -> None:
    assert is_agent(OwnAgent)
    assert not is_agent(Plain)
    assert [cls.__name__ for cls in agent_types(OwnAgent)] == ["BaseMemory", "BaseReasoningStep"]
    assert list(agent_types(Plain)) == []


def test_a_chat_memory_comes_back_with_its_messages(codec: TypedJson) -> None:
    memory = ChatMemoryBuffer.from_defaults(token_limit=77)
    memory.put(ChatMessage(role="user", content="hi"))
    back = through(codec, {"memory": memory})["memory"]
    assert type(back) is ChatMemoryBuffer
    assert back.token_limit == 77
    assert back.get() == memory.get()
    back.put(ChatMessage(role="assistant", content="ho"))
    assert [message.content for message in back.get_all()] == ["hi", "ho"]


def test_what_a_react_agent_has_thought_comes_back(codec: TypedJson) -> None:
    thoughts = [
        ActionReasoningStep(thought="t", action="a", action_input={"n": 1}),
        ObservationReasoningStep(observation="o"),
    ]
    assert through(codec, thoughts) == thoughts


def test_of_what_a_tool_returns_is_carried_what_can_be(codec: TypedJson) -> None:
    given = tool_result(Handle(), args=(), kwargs={"page": 7, "handle": Handle(), "deep": [Answer(text="x")]})
    back = through(codec, given).tool_output
    assert back.content == "seen"
    assert back.raw_output is None
    assert back.raw_input == {
        "args": (),
        "kwargs": {"page": 7, "handle": None, "deep": [{"text": "x", "score": 0.5}]},
    }
    assert isinstance(given.tool_output.raw_output, Handle)


def test_what_is_declared_keeps_its_type_in_a_raw_field(codec: TypedJson) -> None:
    message = ChatMessage(role="user", content="x")
    back = through(codec, tool_result([message, {1, 2}, {"tuple": (1, Handle())}])).tool_output
    assert back.raw_output == [message, {1, 2}, {"tuple": (1, None)}]


def test_an_error_of_a_tool_comes_back(codec: TypedJson) -> None:
    output = ToolOutput(
        tool_name="look", content="no", raw_input={}, is_error=True, exception=ValueError("no")
    )
    assert repr(through(codec, output).exception) == "ValueError('no')"


def test_what_the_client_of_a_model_leaves_in_a_message(codec: TypedJson) -> None:
    message = ChatMessage(role="assistant", content="x", additional_kwargs={"tool_calls": [Answer(text="y")]})
    back = through(codec, message)
    assert back.content == "x"
    assert back.additional_kwargs == {"tool_calls": [{"text": "y", "score": 0.5}]}


def test_the_raw_answer_of_a_model_is_left_out(codec: TypedJson) -> None:
    output = AgentOutput(response=ChatMessage(content="x"), current_agent_name="a", raw=Handle())
    assert through(codec, output).raw is None


def test_what_is_nested_too_deeply_is_left_out(codec: TypedJson) -> None:
    deep: list[Any] = []
    for _ in range(120):
        deep = [deep]
    assert through(codec, tool_result(deep)).tool_output.raw_output == [[[None]]]


@pytest.mark.parametrize("levels", [1, 50])
def test_a_value_that_contains_itself_ends(codec: TypedJson, levels: int) -> None:
    circle: dict[str, Any] = {}
    inner = circle
    for _ in range(levels):
        inner["on"] = inner = {}
    inner["a"] = inner["b"] = circle
    assert isinstance(through(codec, tool_result(circle)).tool_output.raw_output, dict)


def test_outside_of_raw_fields_what_cannot_be_carried_is_an_error(codec: TypedJson) -> None:
    given = tool_result("x")
    given.tool_kwargs["handle"] = Handle()
    with pytest.raises(SerializationError, match=r"\$\.tool_kwargs\.handle is a .*Handle"):
        codec.dumps(given)
    with pytest.raises(SerializationError, match=r"ToolCallResult\.tool_kwargs"):
        streamed_event(given)


class OwnMemory(Memory):
    pass


@pytest.mark.parametrize("cls", [Memory, OwnMemory])
def test_a_memory_in_a_database_is_refused_and_not_emptied(codec: TypedJson, cls: type[Memory]) -> None:
    declared = TypedJson(TypeRegistry([cls, Memory]))
    for either in (codec, declared):
        with pytest.raises(SerializationError, match=r"\$\.memory is a .*Memory, .*ChatMemoryBuffer"):
            either.dumps({"memory": cls(token_limit=5)})


def test_a_model_is_never_written_down(codec: TypedJson) -> None:
    memory = ChatSummaryMemoryBuffer.from_defaults(llm=MockLLM(), token_limit=5)
    declared = TypedJson(TypeRegistry([MockLLM, ChatSummaryMemoryBuffer]))
    for either in (codec, declared):
        with pytest.raises(SerializationError, match=r"\$\.llm is a .*MockLLM, which holds connections"):
            either.dumps(memory)
    assert declared.types.find("llama_index.core.llms.mock.MockLLM") is None
    assert through(codec, tool_result(MockLLM())).tool_output.raw_output is None


def test_an_event_is_streamed_with_what_json_holds_of_its_raw_fields() -> None:
    given = tool_result({"page": 7, "handle": Handle()}, where=Path("a"), nan=float("nan"))
    data = streamed_event(given).payload.data
    assert data["tool_output"]["raw_output"] == {"page": 7, "handle": None}
    assert data["tool_output"]["raw_input"] == {"where": "a", "nan": None}
    assert isinstance(given.tool_output.raw_output["handle"], Handle)


def test_fields_are_reduced_wherever_they_stand() -> None:
    held = with_reduced_fields(StopEvent(result={"all": [tool_result(Handle())]}))
    assert held.result["all"][0].tool_output.raw_output is None
    assert type(held.result["all"][0]) is ToolCallResult


def test_reduced_values_are_json() -> None:
    assert reduced({1: (Path("a"), Handle()), "x": float("inf")}) == {"1": ["a", None], "x": None}
