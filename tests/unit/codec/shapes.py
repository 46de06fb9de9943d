"""Classes that the tests of the codec carry, strategies for their values, and what being the same means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, PrivateAttr, RootModel, field_validator
from workflows.events import Event, StopEvent

from llama_deploy.codec import DescribedError, TypedJson, TypeRegistry

T = TypeVar("T")


class Colour(Enum):
    RED = ("r", 1)
    BLUE = ("b", 2)


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mood(StrEnum):
    GOOD = "good"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Any1(BaseModel):
    held: Any
    label: str = "none"


class Derived(Any1):
    more: Any = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    known: int = 0


class Private(BaseModel):
    _kept: Any = PrivateAttr(default=None)
    _many: dict[str, Any] = PrivateAttr(default_factory=dict)
    _absent: int = PrivateAttr()


class Lowered(BaseModel):
    """Its validator changes and refuses what may stand in it all the same."""

    word: Any

    @field_validator("word")
    @classmethod
    def lower(cls, value: Any) -> Any:
        if value == "no":
            raise ValueError("no")
        return value.lower()


class Part(BaseModel):
    handle: Any = Field(default="default handle", exclude=True)
    name: str


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    number: int


class Box(BaseModel, Generic[T]):
    content: T


class Words(RootModel[list[str]]):
    pass


class Aliased(BaseModel):
    inner: Any = Field(alias="outer")

    @cached_property
    def twice(self) -> list[Any]:
        return [self.inner, self.inner]


@dataclass
class Pair:
    left: Any
    right: Any = 0
    computed: Any = field(init=False)

    def __post_init__(self) -> None:
        self.undeclared = "set by __post_init__"


@dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = field(default_factory=list)


class Row(NamedTuple):
    first: Any
    second: Any = 2


class Went(Event):
    where: Any
    _hidden: Any = PrivateAttr(default=None)


class QuotaError(Exception):
    def __init__(self, used: int, *, limit: int) -> None:
        super().__init__(used)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.args[0]} of {self.limit}"


class StrangerError(Exception):
    """Not declared."""


DECLARED = (
    *(
        Colour,
        Level,
        Mood,
        Rights,
        Any1,
        Derived,
        Open,
        Private,
        Lowered,
        Part,
        Frozen,
        Box,
        Box[int],
        Box[Any],
    ),
    *(Words, Aliased, Pair, Point, Row, Went, StopEvent, Event, QuotaError),
)


def codec(*types: type) -> TypedJson:
    return TypedJson(TypeRegistry([*DECLARED, *types]))


def same(left: Any, right: Any) -> bool:  # noqa: C901, PLR0911 - one case a kind
    """Return whether two values are the same in all that the codec promises to carry."""
    if type(left) is not type(right):
        return False
    match left:
        case float() if math.isnan(left):
            return math.isnan(right)
        case Decimal():
            return str(left) == str(right)
        case float():
            return left == right and math.copysign(1, left) == math.copysign(1, right)
        case list() | tuple():
            return len(left) == len(right) and all(map(same, left, right))
        case dict():
            return len(left) == len(right) and all(map(same, left.items(), right.items()))
        case set() | frozenset():
            return same(sorted(left, key=repr), sorted(right, key=repr))
        case datetime() | time():
            plain = left.replace(tzinfo=None) == right.replace(tzinfo=None)
            return plain and left.fold == right.fold and repr(left.tzinfo) == repr(right.tzinfo)
        case BaseException():
            return same(left.args, right.args) and same(vars(left), vars(right))
        case BaseModel():
            return all(same(a, b) for a, b in zip(state_of(left), state_of(right), strict=True))
    if is_dataclass(left) and not isinstance(left, type):
        return same(
            {f.name: getattr(left, f.name, "absent") for f in fields(left)} | getattr(left, "__dict__", {}),
            {f.name: getattr(right, f.name, "absent") for f in fields(left)} | getattr(right, "__dict__", {}),
        )
    return bool(left == right)


def state_of(model: BaseModel) -> tuple[Any, ...]:
    held = dict(vars(model))
    held.pop("twice", None)
    private = sorted((model.__pydantic_private__ or {}).items())
    return held, model.model_fields_set, model.__pydantic_extra__, dict(private)


any_text = st.text(st.characters(exclude_categories=()))
offsets = st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23))
named_zones = st.timezone_keys(allow_prefix=False).map(ZoneInfo)
zones = (
    st.none() | named_zones | st.builds(timezone, offsets) | st.builds(timezone, offsets, st.text(min_size=1))
)
plain_paths = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
hashable_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(1 << 1_100)
    | any_text
    | st.binary()
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | st.sampled_from([*Colour, *Level, *Mood, Rights.READ, Rights.READ | Rights.WRITE, Point, Any1])
    | st.builds(PurePosixPath, plain_paths)
    | st.builds(PureWindowsPath, plain_paths)
    | st.just(HttpUrl("https://example.org/a?b=c#d"))
    | st.builds(Path, plain_paths)
    | st.builds(Frozen, number=st.integers())
)
leaves = (
    hashable_leaves
    | st.floats()
    | st.decimals()
    | st.times(timezones=zones)
    | st.builds(bytearray, st.binary())
    | st.builds(ValueError, any_text)
    | st.builds(QuotaError, st.integers(), limit=st.integers())
    | st.builds(DescribedError, st.just("elsewhere.OtherError"), any_text)
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(Row, inner, inner)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=4,
)


def _event(cls: type[Event], inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    extras = st.dictionaries(st.sampled_from(["one", "two", "$"]), inner, max_size=2)
    return st.builds(lambda where, more: cls(where=where, **more), inner, extras)


def _private(kept: Any) -> Private:
    model = Private()
    model._kept = kept
    model._many = {"kept": kept}
    return model


def _constructed(word: Any) -> Lowered:
    return Lowered.model_construct(word=word)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = any_text | st.just("$")
    return (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
        | st.dictionaries(hashables, inner, max_size=3)
        | st.sets(hashables, max_size=3)
        | st.frozensets(hashables, max_size=3)
        | st.builds(Any1, held=inner)
        | st.builds(Derived, held=inner, more=inner)
        | st.builds(lambda extra: Open(**extra), st.dictionaries(st.sampled_from(["a", "b c"]), inner))
        | st.builds(_private, inner)
        | st.builds(_constructed, inner)
        | st.builds(lambda content: Box[Any].model_construct(content=content), inner)
        | st.builds(lambda outer: Aliased(outer=outer), inner)
        | st.builds(Pair, inner, inner)
        | st.builds(Point, inner, inner)
        | st.builds(Row, inner, inner)
        | _event(Went, inner)
        | st.builds(lambda result: StopEvent(result=result), inner)
    )


values = st.recursive(leaves, _containers, max_leaves=12)
