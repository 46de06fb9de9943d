"""The fields of the classes whose objects runs store, in a form that versions of a workflow can compare."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Annotated, Any, Final, get_args, get_origin

from pydantic_core import PydanticUndefined

from llama_deploy.codec.annotations import is_model
from llama_deploy.types.workflow_shape import MAX_SHAPE_CHARACTERS, ClassShape, as_whole

_MAX_CLASS_CHARACTERS: Final = 8 * 1024
"""The size from which the fields of one class are replaced by a digest."""
_MAX_TYPE_CHARACTERS: Final = 500
_PRIVATE: Final = "private attribute"
_MEMBER: Final = "member"


def class_shapes(classes: Mapping[str, type]) -> dict[str, ClassShape]:
    """Return the shapes of classes by name, all of them bounded in size.

    Args:
        classes: Models, dataclasses, named tuples, enums and exceptions, by name. Others are left out.
    """
    found = {name: shape for name, cls in classes.items() if (shape := shape_of(cls)) is not None}
    found = {name: _bounded(shape, _MAX_CLASS_CHARACTERS) for name, shape in found.items()}
    if sum(len(name) + _size(shape) for name, shape in found.items()) <= MAX_SHAPE_CHARACTERS:
        return found
    return {name: _bounded(shape, 0) for name, shape in found.items()}


def shape_of(cls: type) -> ClassShape | None:
    """Return the shape of a class. None: its objects have no fields."""
    if issubclass(cls, BaseException):
        return ClassShape(fields={})
    if issubclass(cls, Enum):
        return ClassShape(fields=dict.fromkeys(cls.__members__, _MEMBER))
    if is_model(cls):
        return _shape_of_model(cls)
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        missing = dataclasses.MISSING
        return ClassShape(
            fields={
                each.name: type_text(hints.get(each.name, each.type)) for each in dataclasses.fields(cls)
            },
            required=sorted(
                each.name
                for each in dataclasses.fields(cls)
                if each.init and each.default is missing and each.default_factory is missing
            ),
        )
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        names: Iterable[str] = cls._fields
        hints, defaults = _hints(cls), getattr(cls, "_field_defaults", {})
        return ClassShape(
            fields={name: type_text(hints.get(name, Any)) for name in names},
            required=sorted(set(names) - set(defaults)),
        )
    return None


def _shape_of_model(cls: Any) -> ClassShape:
    cls.model_rebuild(raise_errors=False)
    fields = {name: type_text(each.annotation) for name, each in cls.model_fields.items() if not each.exclude}
    # A private attribute with a default may be left out when an object is written.
    private = {
        name
        for name, each in cls.__private_attributes__.items()
        if each.default is PydanticUndefined and each.default_factory is None
    }
    return ClassShape(
        fields={**fields, **dict.fromkeys(private, _PRIVATE)},
        required=sorted(name for name, each in cls.model_fields.items() if each.is_required()),
    )


def type_text(annotation: Any) -> str:
    """Return a type as text: the same for the same type, however it is written."""
    return _type_text(annotation)[:_MAX_TYPE_CHARACTERS]


def _type_text(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return "None"
    if origin is None:
        return _name_of(annotation)
    if origin is Annotated:
        return _type_text(args[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(sorted({_type_text(arg) for arg in args}))
    if origin is typing.Literal:
        return " | ".join(sorted(f"Literal[{arg!r}]" for arg in args))
    return f"{_type_text(origin)}[{', '.join(map(_type_text, args))}]"


def _name_of(annotation: Any) -> str:
    if isinstance(annotation, list):  # the parameters of a callable
        return f"[{', '.join(map(_type_text, annotation))}]"
    if isinstance(annotation, type):
        return annotation.__qualname__.rpartition(".")[2]
    if isinstance(annotation, str):
        return annotation
    name = getattr(annotation, "__forward_arg__", None) or getattr(annotation, "__name__", annotation)
    return "..." if annotation is ... else str(name)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except Exception:  # noqa: BLE001 - what evaluating the annotations of any class raises
        return dict(getattr(cls, "__annotations__", {}))


def _bounded(shape: ClassShape, limit: int) -> ClassShape:
    return shape if _size(shape) <= limit else ClassShape(fields=as_whole(shape.fields))


def _size(shape: ClassShape) -> int:
    return len(json.dumps(shape.fields)) + len(json.dumps(shape.required))
