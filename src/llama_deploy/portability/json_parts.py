"""Which parts of a value pydantic writes as JSON, found without writing it.

The events of the workflow library keep fields in private attributes, and write them. Clients do not import
that library, so its classes are found by name.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, PlainSerializer

Parts: TypeAlias = Mapping[Any, Any] | Collection[Any]
"""Parts by their names or keys, or in order."""

SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes})
"""The classes of values without parts."""
_UNDECLARED: Final = "_data"
"""The private attribute with the undeclared fields of the library's events and states."""
_RESULT: Final = "_result"
"""The one with the result of its stop events."""
_STOP_EVENT: Final = "workflows.events.StopEvent"
_SHORT: Final = 60
_LARGE: Final = 10**_SHORT


def parts_of(value: Any) -> Parts:
    """Return the parts of a value, without those that pydantic does not write or that a class writes itself.

    Do not change what is returned.
    """
    cls: type = type(value)
    return parts_finder(cls)(value)


@functools.lru_cache(maxsize=4096)
def parts_finder(cls: type[Any]) -> Callable[[Any], Parts]:
    """Return `parts_of` for the objects of a class."""
    if issubclass(cls, Enum | str | bytes | int | float):
        return _none
    if issubclass(cls, list | tuple | set | frozenset | deque | Mapping):
        return _itself
    if issubclass(cls, BaseModel):
        if any(each.info.mode == "plain" for each in cls.__pydantic_decorators__.model_serializers.values()):
            return _none
        keeps_undeclared = all(name_of(base) != _STOP_EVENT for base in cls.__mro__)
        return _Model(frozenset(cls.model_fields), _written_otherwise(cls), keeps_undeclared)
    if dataclasses.is_dataclass(cls):
        return functools.partial(_of_dataclass, [field.name for field in dataclasses.fields(cls)])
    return _none


def of_numpy(value: Any) -> Any:
    """Return a scalar or an array of numpy as a number or a list.

    Raises:
        TypeError: It is something else, or does not have this form.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        plain = value.tolist()
        if type(plain) is not type(value):
            return plain
    advice = "; use a list of its items" if isinstance(value, Iterable) else ""
    raise TypeError(f"a {name_of(type(value))} does not have a form in JSON{advice}")


def step_to(key: object) -> str:
    """Return the step from a mapping to the value under `key`: `.name`, or `['another key']`."""
    if isinstance(key, str) and key.isidentifier():
        return "" if key == _UNDECLARED else f".{key}"
    # The text of a user's class may be long or fail, and so may that of a long integer.
    plain = type(key) in (str, float, bool) or (type(key) is int and -_LARGE < key < _LARGE)
    text = ascii(key) if plain else type(key).__name__
    return f"[{text if len(text) <= _SHORT else text[:_SHORT] + '...'}]"


def name_of(cls: type) -> str:
    """Return the name of a class with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _none(_: Any) -> Parts:
    return ()


def _itself(value: Any) -> Parts:
    held: Parts = value
    return held


@dataclasses.dataclass(frozen=True, slots=True)
class _Model:
    """Finds the parts of the objects of a model class."""

    declared: frozenset[str]
    without: frozenset[str]
    keeps_undeclared: bool

    def __call__(self, model: BaseModel) -> Parts:
        parts, private, extra = vars(model), model.__pydantic_private__, model.__pydantic_extra__
        if self.without or len(parts) > len(self.declared):  # the latter: cached properties
            written = self.declared - self.without
            parts = {name: item for name, item in parts.items() if name in written}
        if extra:
            parts = {**parts, **extra}
        if private:
            undeclared, result = private.get(_UNDECLARED), private.get(_RESULT)
            if undeclared and self.keeps_undeclared:
                parts = {**parts, _UNDECLARED: undeclared}
            if result is not None:
                parts = {**parts, "result": result}
        return parts


def _written_otherwise(cls: type[BaseModel]) -> frozenset[str]:
    """Return the fields that pydantic does not write, or that the class replaces when it writes them."""
    replaced = {
        name
        for each in cls.__pydantic_decorators__.field_serializers.values()
        if each.info.mode == "plain"
        for name in each.info.fields
    }
    return frozenset(
        name
        for name, field in cls.model_fields.items()
        if field.exclude
        or name in replaced
        or any(isinstance(each, PlainSerializer) for each in field.metadata)
    )


def _of_dataclass(names: list[str], value: Any) -> Parts:
    return {name: getattr(value, name, None) for name in names}
