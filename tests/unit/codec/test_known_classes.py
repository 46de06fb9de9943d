"""Classes that everybody uses: they are known without being declared."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from llama_index.core.agent.react.types import (
    ActionReasoningStep,
    ObservationReasoningStep,
    ResponseReasoningStep,
)
from llama_index.core.agent.workflow import AgentOutput
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, ImageBlock
from llama_index.core.base.response.schema import PydanticResponse, Response
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.schema import Document, ImageNode, IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import ToolOutput, ToolSelection
from pydantic import BaseModel, field_serializer
from workflows import Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy.client.payload_encoding import decode_result
from llama_deploy.codec import TypedJson, TypeRegistry, declared_types
from llama_deploy.codec.plain_json import to_json_value
from llama_deploy.errors import SerializationError

# The library looks at deprecated names of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Handle:
    """Cannot be written."""


class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


NODE = NodeWithScore(node=TextNode(text="deep", metadata={"page": 1}), score=0.5)
MESSAGE = ChatMessage(role="assistant", content="hello")
SELECTION = ToolSelection(tool_id="1", tool_name="look", tool_kwargs={"at": "sea"})
OUTPUT = ToolOutput(tool_name="look", content="seen", raw_input={}, raw_output="seen")
OBJECTS: list[Any] = [
    Response("deep", [NODE], {"a": 1}),
    AgentChatResponse("deep", sources=[OUTPUT], source_nodes=[NODE]),
    ChatResponse(message=MESSAGE, delta="hello"),
    CompletionResponse(text="hello", delta="lo"),
    AgentOutput(response=MESSAGE, tool_calls=[SELECTION], current_agent_name="a"),
    ActionReasoningStep(thought="t", action="look", action_input={"at": "sea"}),
    ObservationReasoningStep(observation="o"),
    ResponseReasoningStep(thought="t", response="r"),
    NODE,
    Document(text="deep", metadata={"page": 1}),
    ImageNode(image_url="http://a/b.png"),
    IndexNode(text="deep", index_id="1"),
    MESSAGE,
    ChatMessage(role="user", blocks=[ImageBlock(url="http://a/b.png")]),
    QueryBundle("how deep?"),
    SELECTION,
    OUTPUT,
]


@pytest.fixture(scope="module")
def codec() -> TypedJson:
    return TypedJson(TypeRegistry([]))


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_the_classes_of_llama_index_are_known(codec: TypedJson, value: Any) -> None:
    again = codec.loads(codec.dumps({"held": [value]}))["held"][0]
    assert type(again) is type(value)
    assert again == value


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_they_come_back_as_their_type(value: Any) -> None:
    again = decode_result(to_json_value(value), type(value), task_id="1")
    assert type(again) is type(value)
    assert to_json_value(again) == to_json_value(value)


class Answer(BaseModel):
    text: str


def test_a_structured_response_is_written() -> None:
    written = to_json_value({"held": PydanticResponse(Answer(text="deep"), [NODE])})["held"]
    assert written["response"] == {"text": "deep"}
    assert written["source_nodes"][0]["score"] == 0.5


@pytest.mark.parametrize(
    "value", [NODE, [NODE], {"a": (NODE,)}, Response("deep", [NODE]), Event(nodes=[NODE.node])]
)
def test_nodes_keep_the_names_of_their_fields(value: Any) -> None:
    text = str(to_json_value(value))
    assert "'metadata': {'page': 1}" in text
    assert "extra_info" not in text


@dataclass(slots=True)
class Slotted:
    nodes: Any


class Shortened(BaseModel):
    nodes: list[Any]

    @field_serializer("nodes", mode="wrap")
    def _first(self, nodes: list[Any], write: Any) -> Any:
        return write(nodes[:1])


@pytest.mark.parametrize("value", [Slotted([NODE]), deque([NODE]), Shortened(nodes=[NODE, NODE])])
def test_nodes_keep_them_in_any_container(value: Any) -> None:
    test_nodes_keep_the_names_of_their_fields(value)


def test_lists_of_nodes_come_back() -> None:
    again = decode_result(to_json_value([NODE, NODE]), list[NodeWithScore], task_id="1")
    assert again == [NODE, NODE]
    assert type(again[0].node) is TextNode


@pytest.mark.parametrize(
    "value",
    [
        ChatResponse(message=MESSAGE, raw={"id": 1, "handle": Handle()}),
        CompletionResponse(text="a", raw={"id": 1, "handle": Handle()}),
        CompletionResponse(text="a", raw={"id": 1, "handle": iter([1])}),
    ],
)
def test_raw_responses_are_reduced(codec: TypedJson, value: Any) -> None:
    assert codec.loads(codec.dumps(value)).raw == {"id": 1, "handle": None}
    assert to_json_value([value])[0]["raw"] == {"id": 1, "handle": None}


def test_no_raw_value_loses_a_key() -> None:
    value = CompletionResponse(text="a", raw={1: "a", "1": Handle(), "b": Handle()})
    assert to_json_value(value)["raw"] == [[1, "a"], ["1", None], ["b", None]]


@pytest.mark.parametrize(
    "value", [str, int, dict, type(None), type, ValueError, date, Decimal, BaseModel, Answer, np.float32]
)
def test_classes_are_values(value: type) -> None:
    codec = TypedJson(TypeRegistry([Answer]))
    assert codec.loads(codec.dumps({"name": value})) == {"name": value}


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.5),
        np.float64("nan"),
        np.int64(-3),
        np.uint8(3),
        np.bool_(True),
        np.str_("a"),
        np.bytes_(b"a"),
    ],
)
def test_scalars_of_numpy_keep_their_class(codec: TypedJson, value: Any) -> None:
    again = codec.loads(codec.dumps([value]))[0]
    assert type(again) is type(value)
    assert again == value or np.isnan(value)


@pytest.mark.parametrize(
    "data",
    [
        {"$": ["numpy", "load", 1]},
        {"$": ["numpy", "ndarray", 1]},
        {"$": ["numpy", 1, 1]},
        {"$": ["class", "os.system"]},
        {"$": ["class", "builtins.eval"]},
        {"$": ["class", "llama_index.core.schema.sys"]},
        {"$": ["class", "llama_index.core.indices.VectorStoreIndex"]},
        {"$": ["model", "llama_index.core.schema.antigravity", {}]},
    ],
)
def test_other_names_are_not_looked_up(codec: TypedJson, data: Any) -> None:
    with pytest.raises(SerializationError):
        codec.decode(data)


def test_nothing_is_imported_until_a_value_needs_it() -> None:
    program = """
import sys
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from llama_deploy.codec import TypedJson, TypeRegistry, declared_types
class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent: ...
codec = TypedJson(TypeRegistry(declared_types(Plain())))
assert "llama_index.core.schema" not in sys.modules and "numpy" not in sys.modules
value = codec.loads(sys.stdin.read())
print(type(value[0]).__name__, type(value[0].node).__name__, type(value[1].blocks[0]).__name__)
from llama_index.core.base.response.schema import Response
print(codec.loads(codec.dumps(Response("late"))).response)
"""
    codec = TypedJson(TypeRegistry(declared_types(Plain())))
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=codec.dumps([NODE, MESSAGE]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["NodeWithScore", "TextNode", "TextBlock", "late"], done.stderr
