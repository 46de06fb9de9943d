"""What goes through the codec comes back as it was, or is refused with the name of its place."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.agent.workflow import AgentOutput, ToolCallResult
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.schema import (
    Document,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.tools import ToolOutput, ToolSelection
from pydantic import BaseModel, Field
from tests.unit.codec import shapes
from tests.unit.codec.shapes import (
    Aliased,
    Any1,
    Box,
    Lowered,
    Open,
    Pair,
    Part,
    Point,
    Private,
    QuotaError,
    Row,
    StrangerError,
    Went,
    Words,
    codec,
    same,
)
from workflows.events import Event, StepFailedEvent, StopEvent, WorkflowFailedEvent

from llama_deploy.codec import DescribedError, TypedJson
from llama_deploy.codec.annotations import reachable
from llama_deploy.codec.encoding import MAX_DEPTH
from llama_deploy.errors import SerializationError

TYPED = codec()


def there_and_back(value: Any, typed: TypedJson = TYPED) -> Any:
    text = typed.dumps(value)
    assert text.encode().decode() == text
    assert typed.dumps(typed.loads(text)) == text, "a second trip changes nothing"
    return typed.loads(text)


@given(shapes.values)
def test_everything_comes_back_as_it_was(value: Any) -> None:
    assert same(value, there_and_back(value))


@given(shapes.values)
def test_json_values_and_text_say_the_same(value: Any) -> None:
    encoded = TYPED.encode(value)
    assert json.loads(json.dumps(encoded)) == encoded
    assert same(value, TYPED.decode(encoded))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: key != "$"), inner),
)


@given(PLAIN)
def test_plain_json_stays_plain(value: Any) -> None:
    encoded = TYPED.encode(value)
    assert same(encoded, value)
    assert json.loads(TYPED.dumps(value)) == value


def test_what_is_encoded_shares_nothing_with_the_value() -> None:
    value: Any = {"a": [1.5], "b": [[]], "c": Any1(held=["x"])}
    encoded = TYPED.encode(value)
    value["a"].append(2.5)
    value["b"][0].append(1)
    value["c"].held.append("y")
    assert encoded == TYPED.encode({"a": [1.5], "b": [[]], "c": Any1(held=["x"])})


def test_equal_sets_are_equal_texts() -> None:
    # These collide in the table of the set, so that its order is that of their arrival.
    assert list({8, 0}) != list({0, 8})
    assert TYPED.dumps({8, 0}) == TYPED.dumps({0, 8})


@pytest.mark.parametrize("made_by_a_user", [{"$": 1}, {"$": ["set", []]}, {"$": {"$": None}, "a": 1}])
def test_a_users_reserved_key_is_no_tag(made_by_a_user: Any) -> None:
    assert there_and_back(made_by_a_user) == made_by_a_user
    event = there_and_back(Went(where=1, **made_by_a_user))
    assert event["$"] == made_by_a_user["$"]


def test_what_validators_refuse_comes_back() -> None:
    model = Lowered.model_construct(word="no")
    assert there_and_back(model).word == "no"
    assert there_and_back(Lowered.model_construct(word="UPPER")).word == "UPPER"


def test_the_set_of_fields_that_were_set_comes_back() -> None:
    assert there_and_back(Any1(held=1)).model_fields_set == {"held"}
    assert there_and_back(Any1(held=1, label="none")).model_fields_set == {"held", "label"}
    opened = there_and_back(Open(more=1))
    assert opened.model_fields_set == {"more"}
    assert opened.more == 1
    opened.other = 2


def test_an_excluded_field_is_left_out_and_restored_to_its_default() -> None:
    part = Part(name="a", handle=threading.Lock())
    back = there_and_back(part)
    assert back.handle == "default handle"
    assert back.name == "a"
    assert back.model_fields_set == {"name"}


def test_an_excluded_field_without_a_default_is_refused() -> None:
    class NoDefault(BaseModel):
        handle: Any = Field(exclude=True)

    with pytest.raises(SerializationError, match=r"'handle'.*no default"):
        codec(NoDefault).dumps(NoDefault(handle=1))


def test_private_attributes_come_back_and_can_be_set() -> None:
    model = Private()
    model._kept = {1, 2}
    back = there_and_back(model)
    assert back._kept == {1, 2}
    assert back._many == {}
    assert not hasattr(back, "_absent")
    back._absent = 3
    assert there_and_back(back)._absent == 3


def test_an_event_keeps_its_dynamic_fields_and_a_stop_event_its_result() -> None:
    event = there_and_back(Went(where="here", when=datetime.now(UTC), who=Any1(held=(1,))))
    assert event.who.held == (1,)
    event.more = 1
    assert event.more == 1
    stop = there_and_back(StopEvent(result=[Any1(held=1)], detail="x"))
    assert stop.result[0].held == 1
    assert stop.detail == "x"


def test_computed_values_are_computed_again() -> None:
    model = Aliased(outer=[1])
    assert model.twice == [[1], [1]]
    assert "twice" not in TYPED.dumps(model)
    assert there_and_back(model).twice == [[1], [1]]


def test_dataclasses_come_back_without_their_constructor() -> None:
    pair = Pair(1)
    pair.undeclared = "changed"
    back = there_and_back(pair)
    assert back.undeclared == "changed"
    assert not hasattr(back, "computed")
    assert there_and_back(Point(1)) == Point(1, [])
    assert there_and_back({Point(1, 2): "hashed"}) == {Point(1, 2): "hashed"}


def test_generic_and_root_models_and_named_tuples() -> None:
    assert same(there_and_back(Box[int](content=3)), Box[int](content=3))
    assert same(there_and_back(Words(["a"])), Words(["a"]))
    assert same(there_and_back(Row(1)), Row(1))


def test_lone_surrogates_and_long_numbers_survive() -> None:
    value = {"\ud800": ["\udfff" + "ä", 10**5000, -(10**5000)]}
    assert there_and_back(value) == value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1),
        KeyError("k"),
        OSError(2, "no such file", "a.txt"),
        FileNotFoundError(2, "no such file", "a.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
        TimeoutError(),
        StopIteration({"a": 1}),
    ],
)
def test_builtin_exceptions_come_back_as_themselves(error: Exception) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert repr(back) == repr(error)


def test_a_declared_exception_comes_back_without_its_constructor() -> None:
    error = QuotaError(3, limit=2)
    error.add_note("seen")
    back = there_and_back(error)
    assert type(back) is QuotaError
    assert str(back) == "3 of 2"
    assert back.__notes__ == ["seen"]


def test_another_exception_comes_back_as_a_description() -> None:
    back = there_and_back(StrangerError("lost"))
    assert type(back) is DescribedError
    assert back.type_name == f"{StrangerError.__module__}.StrangerError"
    assert back.message == str(back) == "lost"
    assert same(there_and_back(back), back)
    assert there_and_back(ValueError(threading.Lock())).type_name == "builtins.ValueError"


def test_an_exception_that_cannot_be_written_is_still_described() -> None:
    class RudeError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "RuntimeError" in there_and_back(RudeError()).message


# The objects of llama_index, and the library's own events.


class Passages(Event):
    nodes: list[NodeWithScore]


class Talk(Event):
    messages: list[ChatMessage]


def nodes() -> list[Any]:
    text = TextNode(text="some text", metadata={"page": 1}, embedding=[0.1, 0.2])
    text.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="a", metadata={"x": 1})
    return [
        text,
        Document(text="a document", doc_id="d", extra_info={"when": "now"}),
        Node(text_resource=MediaResource(text="t"), image_resource=MediaResource(url="file:///a.png")),
        ImageNode(image="AAAA"),
    ]


LLAMA = codec(*reachable([Passages, Talk, AgentOutput, ToolCallResult]))


@pytest.mark.parametrize("node", nodes(), ids=lambda node: type(node).__name__)
def test_nodes_keep_their_classes(node: Any) -> None:
    event = Passages(nodes=[NodeWithScore(node=node, score=0.5)])
    back = there_and_back(event, LLAMA)
    assert same(back, event)
    assert type(back.nodes[0].node) is type(node)
    assert back.nodes[0].node.hash == node.hash


def test_chat_messages_keep_their_blocks() -> None:
    message = ChatMessage(
        role=MessageRole.USER,
        blocks=[TextBlock(text="look"), ImageBlock(image=b"AAAA", image_mimetype="image/png")],
        additional_kwargs={"tool_calls": [{"id": 1}]},
    )
    event = Talk(messages=[message])
    assert same(there_and_back(event, LLAMA), event)


def test_events_of_agents_come_back_without_the_raw_answer() -> None:
    output = AgentOutput(
        response=ChatMessage("hi"),
        current_agent_name="a",
        raw=threading.Lock(),
        tool_calls=[ToolSelection(tool_id="1", tool_name="add", tool_kwargs={"a": 1})],
    )
    back = there_and_back(output, LLAMA)
    assert back.raw is None
    assert back.tool_calls == output.tool_calls
    result = ToolCallResult(
        tool_name="add",
        tool_kwargs={"a": 1},
        tool_id="1",
        tool_output=ToolOutput(tool_name="add", content="3", raw_input={"a": 1}, raw_output=(3,)),
        return_direct=False,
    )
    assert same(there_and_back(result, LLAMA), result)


def test_the_librarys_failures_come_back() -> None:
    typed = codec(StepFailedEvent, WorkflowFailedEvent)
    failed = StepFailedEvent(
        step_name="s",
        input_event=Went(where=(1, 2)),
        exception=QuotaError(1, limit=0),
        attempts=1,
        elapsed_seconds=0.5,
        failed_at=datetime.now(UTC),
    )
    assert same(there_and_back(failed, typed), failed)


# Refusals.


@dataclass
class Undeclared:
    x: int = 0


def generator() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "named", "advice"),
    [
        (Undeclared(), f"{__name__}.Undeclared", "allowed_types"),
        (threading.Lock(), "_thread.lock", "exclude the field"),
        (generator(), "builtins.generator", "a list of its items"),
        (generator, "builtins.function", "exclude the field"),
        (print, "builtins.builtin_function_or_method", "exclude the field"),
        (ast, "builtins.module", "exclude the field"),
        (1j, "builtins.complex", "exclude the field"),
        (Undeclared, f"{__name__}.Undeclared", "the class itself"),
        (object(), "builtins.object", "exclude the field"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_carried_is_named_with_its_place(value: Any, named: str, advice: str) -> None:
    event = Went(where=[Any1(held={"a b": (0, value)})])
    with pytest.raises(SerializationError) as caught:
        TYPED.dumps(event, path="Went")
    assert caught.value.path == "Went.where[0].held['a b'][1]"
    assert str(caught.value).startswith("Went.where[0].held['a b'][1] is ")
    assert named in str(caught.value)
    assert advice in str(caught.value)


def test_places_in_keys_sets_and_private_attributes_are_named() -> None:
    with pytest.raises(SerializationError, match=r"^\$\.x\[UndeclaredKey\] "):
        codec().dumps({"x": {UndeclaredKey(): 1}})
    with pytest.raises(SerializationError, match=r"^\$\[0\] is a .*UndeclaredKey"):
        codec().dumps({UndeclaredKey()})
    with pytest.raises(SerializationError, match=r"^\$\.more is a "):
        codec().dumps(Went(where=1, more=Undeclared()))


@dataclass(frozen=True)
class UndeclaredKey:
    x: int = 0


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    with pytest.raises(
        SerializationError, match=r"^\$\[1\]\.again is the same object as \$, so .* contains itself"
    ):
        TYPED.dumps(loop)
    model = Any1(held=None)
    model.held = [model]
    with pytest.raises(SerializationError, match=r"\$\.start\.held\[0\] is the same object as \$\.start"):
        TYPED.dumps({"start": model})


def test_an_object_in_two_places_is_no_circle() -> None:
    shared = Any1(held=1)
    assert same(there_and_back([shared, shared, [shared]]), [shared, shared, [shared]])


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [{"a": value}, {level: value}, (value,), Any1(held=value)][level % 4]
    return value


def test_what_is_nested_too_deeply_is_refused_and_the_rest_is_read_again() -> None:
    deepest = next(levels for levels in range(MAX_DEPTH, 0, -1) if _can_be_encoded(nested(levels)))
    assert deepest >= MAX_DEPTH / 2
    assert same(there_and_back(nested(deepest)), nested(deepest))
    for levels in (deepest + 1, 2 * MAX_DEPTH, 50_000):
        with pytest.raises(SerializationError, match="nested more than"):
            TYPED.dumps(nested(levels) if levels < 1000 else _deep_list(levels))


def test_the_costliest_nesting_is_read_again() -> None:
    value: Any = 1
    for level in range(MAX_DEPTH):
        value = {level: value}
    assert there_and_back(value) == value
    with pytest.raises(SerializationError, match="nested more than"):
        TYPED.dumps({0: value})


def _can_be_encoded(value: Any) -> bool:
    try:
        TYPED.dumps(value)
    except SerializationError:
        return False
    return True


def _deep_list(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value
