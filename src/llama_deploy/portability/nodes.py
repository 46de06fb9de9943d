"""Documents and nodes of llama_index in JSON: they tell the name of their class.

They are written with the names of their fields, such as `metadata`. Pydantic would write an alias from an
early release, `extra_info`, which is read too. Models of users keep their aliases, which are the names in
their JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from llama_deploy.portability.json_parts import name_of, parts_of

_MODULE: Final = "llama_index.core.schema"
_BASES: Final = ("BaseNode", "NodeWithScore")
_CLASS_NAME: Final = "class_name"
"""The key under which they write the name of their class."""
_WRITTEN_WITH_NAMES: Final = f"{_MODULE}.BaseNode"


@functools.lru_cache(maxsize=1024)
def is_written_with_names(cls: type[Any]) -> bool:
    """Return whether the fields of a model are written with their names."""
    return any(name_of(base) == _WRITTEN_WITH_NAMES for base in cls.__mro__)


def with_field_names(value: Any, encoded: Any) -> Any:
    """Return the JSON of a value in which nodes have the names of their fields as keys.

    Args:
        value: The value, which is not nested too deeply for pydantic.
        encoded: What pydantic has made of it.
    """
    if isinstance(encoded, list) and isinstance(value, list | tuple | set | frozenset | deque):
        # A serializer of the user may have written fewer.
        return [with_field_names(*pair) for pair in zip(value, encoded, strict=False)] + encoded[len(value) :]
    if not isinstance(encoded, dict):
        return encoded
    if isinstance(value, BaseModel):
        return _of_model(value, encoded)
    if isinstance(value, Mapping):
        items = zip(value.values(), encoded.items(), strict=False)
        return encoded | {key: with_field_names(inner, item) for inner, (key, item) in items}
    if dataclasses.is_dataclass(value):
        return {key: with_field_names(getattr(value, key, None), item) for key, item in encoded.items()}
    return encoded


def _of_model(value: BaseModel, encoded: dict[str, Any]) -> dict[str, Any]:
    names = _names_by_key(type(value))
    keeps_keys = not is_written_with_names(type(value))
    parts = parts_of(value)
    if not isinstance(parts, Mapping):  # its class writes it
        return encoded
    named: dict[str, Any] = {}
    for key, item in encoded.items():
        name = names.get(key, key)
        named[key if keeps_keys else name] = with_field_names(parts.get(name), item)
    return named


@functools.lru_cache(maxsize=1024)
def _names_by_key(cls: type[BaseModel]) -> dict[str, str]:
    """Return the names of a model's fields by the keys with which pydantic writes them."""
    return {
        field.serialization_alias or field.alias or name: name for name, field in cls.model_fields.items()
    }


def with_nodes(value: Any) -> Any:
    """Return decoded JSON in which documents, nodes and nodes with scores are objects again.

    Models of llama_index name an abstract class for them, which cannot be built. An object that only looks
    like one stays as it is, and so does all if llama_index is not loaded.
    """
    return value if _MODULE not in sys.modules else _with_nodes(value, _LoadedClasses())


class _LoadedClasses:
    """The classes that are loaded when the first of them is asked for.

    Use it for one value: others may be defined later.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, type[BaseModel]] | None = None

    def find(self, name: object) -> type[BaseModel] | None:
        """Return the class that writes this name and whose objects can be made. None: there is none."""
        if not isinstance(name, str):
            return None
        if self._by_name is None:
            self._by_name = _by_name()
        return self._by_name.get(name)


def _with_nodes(value: Any, classes: _LoadedClasses) -> Any:
    if isinstance(value, list):
        return [_with_nodes(item, classes) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: _with_nodes(item, classes) for name, item in value.items()}
    cls = classes.find(fields.get(_CLASS_NAME))
    if cls is None:
        return fields
    try:
        return cls.model_validate(fields)
    except (ValidationError, TypeError):
        return fields


def _by_name() -> dict[str, type[BaseModel]]:
    """Return the loaded classes that can be made, by the names that they write."""
    module = sys.modules[_MODULE]
    found: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [getattr(module, name) for name in _BASES if hasattr(module, name)]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls):
            found.setdefault(cls.class_name(), cls)
    return found
