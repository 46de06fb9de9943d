"""What a workflow accepts is never refused before it; what it would refuse is, where its classes tell."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StopEvent
from workflows.handler import WorkflowHandler

from llama_deploy.control_plane.decisions.value_checks import faults_of
from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.values.payloads import build_event
from llama_deploy.services.values.sure_schemas import (
    MAX_SCHEMAS_CHARACTERS,
    event_schemas,
    input_check,
    sure_schema,
)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Part(BaseModel):
    size: int
    parts: list[Part] = Field(default_factory=list)


class Odd(BaseModel):
    size: int

    @model_validator(mode="before")
    @classmethod
    def of_number(cls, value: Any) -> Any:
        return {"size": value} if isinstance(value, int) else value


class Own(BaseModel):
    size: int

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"size": 1, **fields})


class Order(StartEvent):
    city: str
    days: int = 1
    price: float | None = None
    vip: bool = False
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    kind: Literal["trip", "stay"] = "trip"
    parts: list[Part] = Field(default_factory=list)
    odd: Odd | None = None
    own: Own | None = None
    when: datetime | None = None
    amount: Decimal | None = None
    tags: set[str] = Field(default_factory=set)
    extra: dict[str, int] = Field(default_factory=dict)
    pair: tuple[int, int] = (0, 0)
    words: Annotated[list[str], BeforeValidator(lambda value: str(value).split(","))] = Field(
        default_factory=list
    )
    anything: Annotated[int, PlainValidator(lambda value: value)] = 0
    short: Annotated[str, Field(max_length=3)] = ""
    either: int | list[str] = 0


VALUES: dict[str, list[Any]] = {
    "city": ["Oslo", 1, None],
    "days": [3, "3", " 3 ", "x", 3.0, 3.5, True, None, [], "1_000"],
    "price": [1, "1.5", "nan", None, "x", {}],
    "vip": [True, "yes", "T", 0, 1.0, 2, "maybe", None],
    "colour": ["red", "green", 1, None],
    "level": [1, "1", 1.0, 2],
    "kind": ["trip", "other", 1],
    "parts": [[], [{"size": "1"}], [{"size": "x"}], [{}], {}, [1], [{"size": 1, "parts": [{"size": "x"}]}]],
    "odd": [1, {"size": 1}, None, "x"],
    "own": [{}, {"size": "x"}, None],
    "when": [0, "2026-01-01", "x"],
    "amount": ["1", 1, 1.5, "x"],
    "tags": [[], ["a"], {}, "a"],
    "extra": [{}, {"a": "1"}, []],
    "pair": [[1, 2], [1], "x"],
    "words": ["a,b", 1, None],
    "anything": [None, [], "x"],
    "short": ["a", "long", 1],
    "either": [1, ["a"], "1", "x", {}],
}


def accepts(cls: type[Event], fields: dict[str, Any]) -> bool:
    try:
        build_event(cls, fields)
    except InvalidRequestError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "value"), [(name, each) for name, values in VALUES.items() for each in values]
)
def test_what_is_refused_would_not_be_accepted(name: str, value: Any) -> None:
    fields = {"city": "Oslo", name: value}
    faults = faults_of(fields, sure_schema(Order))
    assert not (faults and accepts(Order, fields)), faults


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "yes", "red"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["size", "parts", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*VALUES]), json_values, max_size=6))
def test_nothing_that_is_accepted_is_refused(fields: dict[str, Any]) -> None:
    faults = [each for each in faults_of(fields, sure_schema(Order)) if "did you mean" not in each]
    assert not (faults and accepts(Order, fields)), faults


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, "city: missing, expected a string"),
        ({"city": 1}, "city: expected a string, not 1"),
        ({"city": "a", "days": "x"}, "days: expected an integer, not 'x'"),
        ({"city": "a", "dayss": 3}, "dayss: unknown; did you mean 'days'?"),
        ({"city": "a", "price": "x"}, "price: expected a number or null, not 'x'"),
        ({"city": "a", "colour": "green"}, "colour: expected one of 'red', 'blue', not 'green'"),
        ({"city": "a", "parts": [{"size": 1}, {}]}, "parts.1.size: missing, expected an integer"),
        ({"city": "a", "vip": "maybe"}, "vip: expected true or false, not 'maybe'"),
    ],
)
def test_a_fault_names_the_field_and_what_was_expected(fields: dict[str, Any], fault: str) -> None:
    assert faults_of(fields, sure_schema(Order)) == [fault]


def test_a_key_that_is_like_no_missing_field_may_be_read_by_the_workflow() -> None:
    assert faults_of({"city": "a", "days": 1, "dayss": 3, "note": "x"}, sure_schema(Order)) == []


class WithAlias(StartEvent):
    topic: str = Field(validation_alias=AliasChoices("topic", "subject"))


class WithConstructor(StartEvent):
    topic: str

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{"topic": "none", **fields})


class WithValidator(StartEvent):
    topic: str

    @model_validator(mode="before")
    @classmethod
    def fill(cls, fields: Any) -> Any:
        return {"topic": "none", **fields}


class WithCheck(StartEvent):
    topic: str
    length: int

    @field_validator("length", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return len(value)

    @model_validator(mode="after")
    def check(self) -> WithCheck:
        return self


@pytest.mark.parametrize("cls", [WithAlias, WithConstructor, WithValidator, StartEvent, HumanResponseEvent])
def test_a_class_that_reads_its_fields_itself_is_not_judged(cls: type[Event]) -> None:
    assert sure_schema(cls) is None


def test_a_field_with_a_validator_of_its_own_is_not_judged_and_the_others_are() -> None:
    assert faults_of({"topic": 1, "length": "abc"}, sure_schema(WithCheck)) == [
        "topic: expected a string, not 1"
    ]


class Plain(Workflow):
    @step
    async def begin(self, ev: Order) -> StopEvent:
        return StopEvent(result=ev.city)


class OwnRun(Plain):
    def run(self, place: str, ctx: Context | None = None) -> WorkflowHandler:  # type: ignore[override]
        return super().run(ctx=ctx, start_event=Order(city=place))


class Anything(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("city"))


@pytest.mark.parametrize(("make", "checked"), [(Plain, ["city"]), (OwnRun, None), (Anything, None)])
def test_only_a_workflow_with_declared_arguments_has_them_checked(
    make: Callable[[], Workflow], checked: list[str] | None
) -> None:
    check = input_check(make())
    assert (check and check["required"]) == checked


def test_the_schemas_of_a_service_are_bounded() -> None:
    many = {f"field_{number}": (str, ...) for number in range(300)}
    large = {
        f"app.Large{number}": type(
            f"Large{number}", (Event,), {"__annotations__": dict.fromkeys(many, "str")}
        )
        for number in range(20)
    }
    assert sure_schema(large["app.Large0"]) is None
    small = {f"app.E{number}": Order for number in range(100)}
    assert 0 < len(event_schemas(small)) < MAX_SCHEMAS_CHARACTERS / 100
