"""Documents and nodes of llama_index in JSON: they tell the name of their class."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Final

from pydantic import BaseModel, ValidationError

_MODULE: Final = "llama_index.core.schema"
_BASES: Final = ("BaseNode", "NodeWithScore")
_CLASS_NAME: Final = "class_name"
"""The key under which they write the name of their class."""


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
