"""Finds the classes in the annotations of a class's fields."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any, ForwardRef, TypeGuard, TypeVar, get_args, get_origin

from pydantic import BaseModel

_UNRESOLVED = (NameError, AttributeError, TypeError, SyntaxError, ValueError, ImportError, LookupError)


def reachable(classes: Iterable[type]) -> dict[type, None]:
    """Return the classes and those in their fields' annotations, at any depth, in the order found."""
    found: dict[type, None] = {}
    waiting = list(classes)
    while waiting:
        cls = waiting.pop()
        if cls in found:
            continue
        found[cls] = None
        waiting.extend(classes_of_fields(cls))
    return found


def classes_of_fields(cls: type) -> Iterator[type]:
    """Return the classes in the annotations of a class's fields, and its generic origin."""
    if not has_fields(cls):
        return
    if is_model(cls):
        cls.model_rebuild(raise_errors=False)
        for field in cls.model_fields.values():
            yield from classes_in(field.annotation)
        if (origin := cls.__pydantic_generic_metadata__["origin"]) is not None:
            yield origin
    for base in cls.__mro__:
        if has_fields(base):
            for annotation in _own_annotations(base):
                yield from classes_in(annotation)


def classes_in(annotation: Any) -> Iterator[type]:
    """Return the classes in an annotation, as far as it can be resolved."""
    origin = get_origin(annotation)
    if isinstance(annotation, Enum):
        yield type(annotation)
    elif isinstance(annotation, list | tuple):
        for inner in annotation:
            yield from classes_in(inner)
    elif isinstance(annotation, TypeVar):
        yield from classes_in((annotation.__bound__, *annotation.__constraints__))
    elif isinstance(annotation, ForwardRef | str):
        return
    elif origin is not None:
        yield from classes_in(origin)
        yield from classes_in(get_args(annotation))
    elif isinstance(annotation, type):
        if is_carriable(annotation):
            yield annotation
    else:
        # An alias, such as `type X = ...`, or a NewType.
        yield from classes_in(
            tuple(
                inner
                for name in ("__value__", "__supertype__")
                if (inner := getattr(annotation, name, None)) is not None
            )
        )


def is_carriable(cls: type) -> bool:
    """Return whether declaring this class has an effect: it has fields or members, or is a user's class."""
    module = cls.__module__.partition(".")[0]
    if module == "builtins":
        return False
    return has_fields(cls) or issubclass(cls, Enum | BaseException) or module not in sys.stdlib_module_names


def has_fields(cls: type) -> bool:
    """Return whether a class is a pydantic model, a dataclass or a named tuple."""
    return is_model(cls) or dataclasses.is_dataclass(cls) or _is_named_tuple(cls)


def is_model(cls: type) -> TypeGuard[type[BaseModel]]:
    """Return whether a class is a pydantic model; `BaseModel` itself does not count."""
    return issubclass(cls, BaseModel) and cls is not BaseModel


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def _own_annotations(cls: type) -> Iterator[Any]:
    """Return the annotations in the body of a class, resolved one by one: a broken one hides no others."""
    module = sys.modules.get(cls.__module__)
    for name, annotation in vars(cls).get("__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints = typing.get_type_hints(holder, vars(module) if module else {}, dict(vars(cls)))
        except _UNRESOLVED:
            continue  # for example, a name that is imported for type checkers only
        yield from hints.values()
