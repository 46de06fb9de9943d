"""Which classes a registry knows, and by which names."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import pytest
from llama_index.core.schema import BaseNode, NodeWithScore, TextNode
from pydantic import BaseModel, PrivateAttr
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, StartEvent, StepFailedEvent, StopEvent
from workflows.runtime.types.results import AddWaiter, StepWorkerFailed
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import TickStepResult

from llama_deploy.codec import TypedJson, TypeRegistry, declared_types
from llama_deploy.codec.annotations import reachable
from llama_deploy.codec.type_registry import qualified_name
from llama_deploy.errors import SerializationError

T = TypeVar("T")


class Inner(BaseModel):
    x: int = 0


class InUnion(BaseModel):
    later: Optional[Later] = None  # noqa: UP045 - an old form on purpose


class Later(BaseModel):
    y: int = 0


class InMapping(BaseModel):
    pass


class InPrivate(BaseModel):
    pass


class InGeneric(BaseModel):
    pass


class InAlias(BaseModel):
    pass


class Shade(Enum):
    DARK = 1


class Tone(Enum):
    HIGH = 1


class Cell(NamedTuple):
    inner: Inner


@dataclass
class Held:
    cell: Cell


class Wrap(BaseModel, Generic[T]):
    content: T


Renamed = NewType("Renamed", InAlias)


class Go(Event):
    union: Annotated[Union[InUnion, None], "note"]  # noqa: UP007 - the same
    mapping: dict[str, list[tuple[InMapping, ...]]]
    held: Held
    wrap: Wrap[InGeneric]
    shade: Literal[Shade.DARK]
    tone: type[Tone]
    renamed: Renamed
    _private: InPrivate | None = PrivateAttr(default=None)


class State(BaseModel):
    nodes: list[BaseNode] = []


class Answer(HumanResponseEvent):
    text: str


class OnlyInGlobals(BaseModel):
    z: int = 0


class GlobalError(Exception):
    pass


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> Go:
        raise NotImplementedError

    @step
    async def end(self, ev: Go) -> StopEvent:
        raise NotImplementedError


TYPES = declared_types(Flow(), [Answer])


@pytest.mark.parametrize(
    "cls",
    [
        *(Go, State, Answer, InUnion, Later, InMapping, Held, Cell, Inner, Wrap, Wrap[InGeneric], InGeneric),
        *(Shade, Tone, InAlias, InPrivate, OnlyInGlobals, GlobalError, BaseNode, NodeWithScore),
        *(StepFailedEvent, StartEvent, TickStepResult, StepWorkerFailed, AddWaiter, StepId),
    ],
    ids=lambda cls: cls.__name__,
)
def test_a_workflows_types_are_declared(cls: type) -> None:
    assert cls in TYPES
    assert TypeRegistry(TYPES).name_of(cls) == qualified_name(cls)


def test_annotations_alone_lead_to_what_fields_hold() -> None:
    inside = {InUnion, Later, InMapping, Held, Cell, Inner, Wrap, InGeneric, Shade, Tone, InAlias, InPrivate}
    assert inside <= reachable([Go]).keys()


def test_plain_classes_are_not_declared() -> None:
    assert not {cls for cls in TYPES if cls.__module__ in ("builtins", "typing", "collections.abc")}


def test_an_annotation_that_cannot_be_resolved_hides_no_other() -> None:
    @dataclass
    class Partly:
        missing: NotThere  # type: ignore[name-defined] # noqa: F821 - on purpose
        inner: Inner

    assert Inner in reachable([Partly])


def test_a_loaded_subclass_of_a_declared_class_is_known_with_its_fields() -> None:
    registry = TypeRegistry([BaseNode])
    assert registry.name_of(TextNode) == "llama_index.core.schema.TextNode"
    assert registry.find("llama_index.core.schema.MediaResource") is not None


def test_a_subclass_is_known_if_it_is_loaded_before_the_registry_is_made() -> None:
    class Shape:
        """Not a model: only what is derived from it has fields."""

    @dataclass
    class Square(Shape):
        side: int

    typed = TypedJson(TypeRegistry([Shape]))

    @dataclass
    class Circle(Shape):
        radius: int

    assert typed.loads(typed.dumps(Square(2))) == Square(2)
    with pytest.raises(SerializationError, match=r"Circle, which was not loaded when the service started"):
        typed.dumps(Circle(2))
    assert typed.types.find(qualified_name(Circle)) is None


def test_a_class_with_the_bare_name_of_a_declared_one_is_no_hindrance_if_it_appears_later() -> None:
    class First(BaseModel):
        pass

    registry = TypeRegistry([First])
    later = type("First", (First,), {"__module__": "elsewhere"})
    assert registry.find("__main__.First") is First
    assert registry.name_of(First) == qualified_name(First)
    assert registry.name_of(later) is None


@pytest.mark.parametrize("root", [BaseModel, Event, StartEvent, StopEvent, Enum, Exception, object, tuple])
def test_nothing_is_known_through_what_anybody_derives_from(root: type) -> None:
    registry = TypeRegistry([root])
    for cls in (Inner, Go, Answer, Shade, GlobalError, Cell, Held):
        assert registry.name_of(cls) is None
        assert registry.find(qualified_name(cls)) is None


def test_names_of_nested_classes_have_two_forms() -> None:
    class Outer:
        class Nested(BaseModel):
            pass

    registry = TypeRegistry([Outer.Nested])
    assert registry.find(qualified_name(Outer.Nested)) is Outer.Nested
    assert registry.find(f"{__name__}.Nested") is Outer.Nested


def test_another_module_is_no_hindrance_where_one_class_has_the_name() -> None:
    registry = TypeRegistry([Inner])
    assert registry.find("__main__.Inner") is Inner
    assert registry.find("app.Inner") is Inner
    assert registry.find("llama_index.core.Inner") is None
    assert registry.find("workflows.events.Inner") is None


def test_two_classes_of_one_bare_name_are_told_apart_by_their_modules() -> None:
    other = type("Inner", (BaseModel,), {"__module__": "elsewhere"})
    registry = TypeRegistry([Inner, other])
    assert registry.find("elsewhere.Inner") is other
    assert registry.find(qualified_name(Inner)) is Inner
    assert registry.find("__main__.Inner") is None


def test_two_classes_of_one_full_name_are_refused() -> None:
    def make() -> type[BaseModel]:
        class Twin(BaseModel):
            pass

        return Twin

    one, two = make(), make()
    typed = TypedJson(TypeRegistry([one, two]))
    for twin in (one, two):
        with pytest.raises(SerializationError, match="several classes have this name"):
            typed.dumps(twin())


def test_an_undeclared_class_of_a_declared_bare_name_is_refused() -> None:
    other: Any = type("Inner", (BaseModel,), {"__module__": "elsewhere"})
    with pytest.raises(SerializationError, match=r"elsewhere\.Inner, which is not declared"):
        TypedJson(TypeRegistry([Inner])).dumps(other())


def test_classes_of_the_modules_of_a_workflows_bases_are_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("base_of_a_flow")
    monkeypatch.setitem(sys.modules, "base_of_a_flow", module)
    exec("from pydantic import BaseModel\nclass Far(BaseModel): pass", vars(module))  # noqa: S102 - a module of ours
    base = type("Base", (Flow,), {"__module__": "base_of_a_flow"})
    derived: Any = type("Derived", (base,), {"__module__": __name__})
    assert vars(module)["Far"] in declared_types(derived())
