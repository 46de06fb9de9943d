"""Results and events as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, PrivateAttr
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy.codec.plain_json import to_json_value
from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.services.values.payloads import EventRegistry, streamed_event, value_type_of
from llama_deploy.types import EventDefinition


class Colour(Enum):
    RED = "red"


class Point(BaseModel):
    x: int


class Holder(BaseModel):
    held: Any


@dataclass
class Pair:
    left: int
    right: Any


class Go(Event):
    number: int


class Reply(HumanResponseEvent):
    text: str


class Secretive(Event):
    _kept: int = PrivateAttr(default=0)


class Flow(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Go:
        return Go(number=ev.number)

    @step
    async def end(self, ev: Go | Reply) -> StopEvent:
        return StopEvent(result=str(ev))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Point(x=1), {"x": 1}),
        ([Pair(1, Point(x=2))], [{"left": 1, "right": {"x": 2}}]),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        (b"text", "text"),
        (["NaN", "Infinity"], ["NaN", "Infinity"]),
        (Path("/a"), "/a"),
        ({1: "x", "2": "y", None: "z"}, {"1": "x", "2": "y", "None": "z"}),
        (float("nan"), "NaN"),
        ([1.5, float("inf"), {"x": float("-inf")}], [1.5, "Infinity", {"x": "-Infinity"}]),
        (Pair(1, float("nan")), {"left": 1, "right": "NaN"}),
        ({"name": str, "output": Point}, {"name": "builtins.str", "output": f"{__name__}.Point"}),
        ({"rows": list[int]}, {"rows": "list[int]"}),
        ([np.float32(0.5), np.int64(3), np.bool_(True)], [0.5, 3, True]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.float64("nan"), "NaN"),
    ],
)
def test_values_have_a_plain_form(value: object, expected: object) -> None:
    assert to_json_value(value) == expected


def endless() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "$"),
        ({"items": [1, 2, {"handle": object()}]}, "$.items[2].handle"),
        (Holder(held={"a": [object()]}), "$.held.a[0]"),
        (Pair(1, [b"\xff"]), "$.right[0]"),
        ([10**5000], "$[0]"),
        ({"a": [iter([1])]}, "$.a[0]"),
        (Holder(held=map(str, [1])), "$.held"),
        ({"a": {1: "x", "1": "y"}}, "$.a"),
        ([{True: 1, "true": 2}], "$[0]"),
        (Holder(held={None: 1, "None": 2}), "$.held"),
        ({"a": ["fine", "\ud800"]}, "$.a[1]"),
        (StopEvent(result=[object()]), "$.result[0]"),
        ({"f": test_values_have_a_plain_form}, "$.f"),
    ],
)
def test_the_place_of_what_has_none_is_named(value: object, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        to_json_value(value)
    assert caught.value.path == path
    assert path in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    with pytest.raises(SerializationError, match=r"\$\[0\]"):
        to_json_value(endless())


def test_a_streamed_event_is_named_and_measured() -> None:
    streamed = streamed_event(Go(number=1, note="x" * 500))
    assert streamed.payload.model_dump(exclude={"step_run"}) == {
        "type": "Go",
        "data": {"number": 1, "note": "x" * 500},
    }
    assert 500 < streamed.size < 600
    with pytest.raises(SerializationError) as caught:
        streamed_event(Event(handle=object()))
    assert caught.value.path == "event Event.handle"


def test_plain_values_have_no_type_name() -> None:
    values: list[object] = [None, 1, "a", [1], {}]
    assert [value_type_of(value) for value in values] == [None] * 5
    assert value_type_of((1,)) == "builtins.tuple"
    assert value_type_of(Point(x=1)) == f"{__name__}.Point"


def definition(wire: object) -> EventDefinition:
    return EventDefinition(event_obj_str=json.dumps(wire))


@pytest.mark.parametrize("name", [f"{__name__}.Reply", "Reply", "__main__.Reply", "some.client.module.Reply"])
@pytest.mark.parametrize("key", ["qualified_name", "type"])
def test_known_events_are_decoded(name: str, key: str) -> None:
    event = EventRegistry(Flow()).decode(definition({key: name, "value": {"text": "yes"}}))
    assert type(event) is Reply
    assert event.text == "yes"


@pytest.mark.parametrize(
    "wire",
    [
        5,
        [],
        {},
        {"qualified_name": 5, "value": {}},
        {"qualified_name": "Reply", "value": []},
        {"qualified_name": "Reply", "value": {"text": 5}},
        {"qualified_name": "Reply", "value": {}},
        {"qualified_name": "os.system", "value": {}},
        {"qualified_name": "antigravity.Event", "value": {}},
        {"qualified_name": "Reply", "value": {"text": "a", "_data": 5}},
        {"qualified_name": "Secretive", "value": {"_kept": 5}},
        {"qualified_name": "StopEvent", "value": {}},
        {"qualified_name": "StartEvent", "value": {}},
    ],
)
def test_everything_else_is_refused_and_nothing_imported(wire: object) -> None:
    with pytest.raises(InvalidRequestError):
        EventRegistry(Flow(), [Secretive]).decode(definition(wire))
    assert "antigravity" not in sys.modules


@given(st.text())
def test_no_text_breaks_the_decoder(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        EventRegistry(Flow()).decode(EventDefinition(event_obj_str=text))


def test_only_declared_events_are_known() -> None:
    class Extra(Event):
        pass

    with pytest.raises(InvalidRequestError, match="allowed_types"):
        EventRegistry(Flow()).decode(definition({"type": "Extra", "value": {}}))
    assert type(EventRegistry(Flow(), [Extra]).decode(definition({"type": "Extra", "value": {}}))) is Extra


class Waits(Workflow):
    """Its steps do not declare what they wait for."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.wait_for_event(Approval)
        return StopEvent(result=str(ev))


class Approval(HumanResponseEvent):
    by: str


class Offer(InputRequiredEvent):
    text: str


@pytest.mark.parametrize("cls", [Approval, HumanResponseEvent])
def test_answers_that_the_module_of_the_workflow_names_are_known(cls: type[Event]) -> None:
    wire = {"type": cls.__name__, "value": {"by": "Ada"}}
    registry = EventRegistry(Waits())
    assert type(registry.decode(definition(wire))) is cls
    assert f"{cls.__module__}.{cls.__name__}" in registry.names
    assert f"{__name__}.Secretive" not in registry.names, "not every event comes from outside"


def test_questions_and_answers_are_told_from_other_events() -> None:
    flow, waits = EventRegistry(Flow()), EventRegistry(Waits(), [Secretive])
    assert flow.questions == waits.questions == ["InputRequiredEvent", "Offer"]
    assert flow.answers == ["Reply"], "a step declares it"
    assert waits.answers == ["Approval", "HumanResponseEvent", "Reply"], "one of the module's"


def in_a_module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(text, vars(module))  # noqa: S102 - it is written here
    return module


BARE = """
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
{imports}
class Bare(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent: ...
"""
ASKING = """
from workflows.events import HumanResponseEvent
class Approval(HumanResponseEvent):
    by: str
async def ask(ctx):
    return await ctx.wait_for_event(Approval)
class Base: ...
"""


@pytest.mark.parametrize("cls", [HumanResponseEvent, InputRequiredEvent])
def test_the_answers_of_the_library_are_known_to_every_workflow(
    cls: type[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = in_a_module("bare", BARE.format(imports=""), monkeypatch).Bare
    registry = EventRegistry(bare())
    assert type(registry.decode(definition({"type": cls.__name__, "value": {}}))) is cls
    assert registry.answers == []


@pytest.mark.parametrize(
    "imports",
    ["from asking import ask", "import asking", "from asking import Base", "from between import ask_later"],
)
def test_an_answer_that_an_imported_function_waits_for_is_known(
    imports: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_module("asking", ASKING, monkeypatch)
    in_a_module("between", "from asking import ask\nasync def ask_later(ctx): await ask(ctx)", monkeypatch)
    bare = in_a_module("bare", BARE.format(imports=imports), monkeypatch).Bare
    event = EventRegistry(bare()).decode(definition({"type": "Approval", "value": {"by": "Ada"}}))
    assert event.by == "Ada"


def test_the_answers_of_other_modules_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_module("asking", ASKING, monkeypatch)
    bare = in_a_module("bare", BARE.format(imports=""), monkeypatch).Bare
    with pytest.raises(InvalidRequestError, match="--allow-type"):
        EventRegistry(bare()).decode(definition({"type": "Approval", "value": {"by": "Ada"}}))
