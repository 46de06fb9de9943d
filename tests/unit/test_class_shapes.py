"""What versions compare of the classes whose objects runs store."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union

import pytest
from pydantic import BaseModel, Field, PrivateAttr
from workflows.events import Event

from llama_deploy.services.values.class_shapes import class_shapes, shape_of, type_text
from llama_deploy.types.workflow_shape import MAX_SHAPE_CHARACTERS, as_whole

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Part(BaseModel):
    name: str


class Box(BaseModel, Generic[T]):
    item: T


class Given(Event):
    parts: list[Part]
    colour: Colour = Colour.RED
    note: str | None = None
    hidden: int = Field(default=0, exclude=True)
    _secret: int = PrivateAttr()
    _count: int = PrivateAttr(default=0)


@dataclass
class Data:
    n: int
    tags: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: str = ""


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (None, "None"),
        (Optional[int], "None | int"),  # noqa: UP045 - as people write it
        (Union[str, int, None], "None | int | str"),  # noqa: UP007
        (int | str, "int | str"),
        (list[Part | None], "list[None | Part]"),
        (dict[str, tuple[int, ...]], "dict[str, tuple[int, ...]]"),
        (Annotated[int, Field(gt=0)], "int"),
        (Literal["b", "a"], "Literal['a'] | Literal['b']"),
        (Any, "Any"),
        (Box[int], "Box[int]"),
        ("Later", "Later"),
    ],
)
def test_a_type_has_one_text_however_it_is_written(annotation: Any, text: str) -> None:
    assert type_text(annotation) == text


def test_the_fields_that_are_stored_count() -> None:
    assert (shape := shape_of(Given)) is not None
    assert shape.fields == {
        "parts": "list[Part]",
        "colour": "Colour",
        "note": "None | str",
        "_secret": "private attribute",
    }
    assert shape.required == ["parts"]


@pytest.mark.parametrize(
    ("cls", "fields", "required"),
    [
        (Data, {"n": "int", "tags": "list[str]"}, ["n"]),
        (Pair, {"left": "int", "right": "str"}, ["left"]),
        (Colour, {"RED": "member", "BLUE": "member"}, []),
        (LookupError, {}, []),
    ],
)
def test_other_classes_have_fields_too(cls: type, fields: dict[str, str], required: list[str]) -> None:
    assert (shape := shape_of(cls)) is not None
    assert (shape.fields, shape.required) == (fields, required)


def test_a_class_without_fields_has_no_shape() -> None:
    assert shape_of(object) is None


def test_shapes_are_bounded() -> None:
    wide = make_dataclass("Wide", [f"field_{n}" for n in range(2_000)])
    shapes = class_shapes({"app.Given": Given, "app.Wide": wide})
    assert shapes["app.Given"] == shape_of(Given)
    assert (shape := shape_of(wide)) is not None
    assert shapes["app.Wide"].fields == as_whole(shape.fields)

    narrow = make_dataclass("Narrow", [f"field_{n}" for n in range(100)])
    many = class_shapes({f"app.C{n:04}": narrow for n in range(200)})
    assert sum(len(name) + len(str(shape)) for name, shape in many.items()) < MAX_SHAPE_CHARACTERS
