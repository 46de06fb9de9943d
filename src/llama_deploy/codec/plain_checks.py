"""What must not be written as plain JSON, although pydantic does it.

Pydantic reads iterators, such as files and endless counters, to their end. It writes keys that are not
strings as their texts, so that of the keys `1` and `"1"` only one remains.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel

from llama_deploy.codec.annotations import is_model
from llama_deploy.codec.field_names import is_written_with_names
from llama_deploy.types.json_values import check_keys
from llama_deploy.workflow_library import parts_of_model

_SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes})


def check_plain(value: Any) -> bool:
    """Look for what must not be written.

    Returns:
        Whether the value contains models that are written with the names of their fields; see
        `codec.agents`.

    Raises:
        ValueError: It contains an iterator, or a mapping with keys that are the same in JSON.
    """
    if type(value) in _SCALARS:
        return False
    waiting, seen, has_names = [value], {id(value)}, False
    while waiting:
        current = waiting.pop()
        cls: type = type(current)
        has_names = has_names or is_written_with_names(cls)
        for item in _children_of(cls)(current):
            # An object that occurs twice is looked at once; one that contains itself is left to pydantic.
            if type(item) not in _SCALARS and id(item) not in seen:
                seen.add(id(item))
                waiting.append(item)
    return has_names


_Children = Callable[[Any], Iterable[Any]]


@functools.lru_cache(maxsize=4096)
def _children_of(cls: type) -> _Children:
    """Return what finds the values inside an object of a class."""
    for bases, children in _KINDS:
        if issubclass(cls, bases):
            return children
    if is_model(cls):
        return functools.partial(_of_model, _not_checked(cls))
    if dataclasses.is_dataclass(cls):
        return functools.partial(_of_dataclass, [field.name for field in dataclasses.fields(cls)])
    return functools.partial(_reject_iterator, cls) if hasattr(cls, "__next__") else _none


def _none(_: Any) -> Iterable[Any]:
    return ()


def _others(items: Any) -> Iterable[Any]:
    # Long lists usually have items of one class; this looks at them in C.
    return () if _SCALARS.issuperset(map(type, items)) else items


def _of_mapping(value: Mapping[Any, Any]) -> Iterable[Any]:
    if not set(map(type, value)) <= {str}:
        check_keys(value)
    return _others(value.values())


_KINDS: Final[tuple[tuple[tuple[type, ...], _Children], ...]] = (
    ((Enum, str, bytes, int, float), _none),
    ((list, tuple, set, frozenset, deque), _others),
    ((dict,), _of_mapping),
)


def _of_model(without: frozenset[str], value: BaseModel) -> Iterable[Any]:
    parts = parts_of_model(value)
    return [item for name, item in parts.items() if name not in without] if without else parts.values()


def _not_checked(cls: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that pydantic does not write, or that its class writes itself."""
    decorators = cls.__pydantic_decorators__
    if any(each.info.mode == "plain" for each in decorators.model_serializers.values()):
        return frozenset(cls.model_fields)
    own = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    return frozenset(name for name, field in cls.model_fields.items() if field.exclude or name in own)


def _of_dataclass(names: list[str], value: Any) -> Iterable[Any]:
    attributes = getattr(value, "__dict__", None)
    for name in names:
        yield attributes.get(name) if attributes is not None else getattr(value, name, None)


def _reject_iterator(cls: type, _: Any) -> Iterable[Any]:
    raise ValueError(f"{cls.__name__} is an iterator, which is not read; use a list of its items")


def with_finite_numbers(value: Any) -> Any:
    """Return JSON in which `NaN` and infinite numbers are strings, which pydantic reads as numbers."""
    if type(value) is float:
        return value if math.isfinite(value) else _NAMES.get(value, "NaN")
    if type(value) is list:
        return [with_finite_numbers(item) for item in value]
    if type(value) is dict:
        return {key: with_finite_numbers(item) for key, item in value.items()}
    return value


_NAMES: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}
