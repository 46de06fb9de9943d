"""The classes of llama_index: what its agents keep besides what their steps declare, and what is data.

This package does not need llama_index and never imports it. It finds the classes by name, if the hosted
workflow has loaded them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, ValidationError

from llama_deploy.live_objects import find_live

_HOME: Final = "llama_index.core.agent"
_HELD: Final = (
    ("llama_index.core.memory.types", "BaseMemory"),
    ("llama_index.core.agent.react.types", "BaseReasoningStep"),
)
"""The base classes of what an agent keeps in its state: its memory, and the reasoning of a ReAct agent."""

_DATA: Final = (
    ("llama_index.core.schema", "BaseNode"),
    ("llama_index.core.schema", "NodeWithScore"),
    ("llama_index.core.base.llms.types", "ChatMessage"),
    ("llama_index.core.base.llms.types", "BaseContentBlock"),
)
"""The base classes of what retrievers return and of chat messages."""

_NODES: Final = ("BaseNode", "NodeWithScore")
_CLASS_NAME: Final = "class_name"
"""The key under which they write the name of their class."""

_RAW_FIELDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "llama_index.core.tools.types.ToolOutput": frozenset({"raw_input", "raw_output"}),
        "llama_index.core.base.llms.types.ChatMessage": frozenset({"additional_kwargs"}),
    }
)
"""Fields with raw objects of tools and LLM clients, of any class; other fields hold the relevant data."""

LEVELS: Final = 4
"""How deep containers are searched for what can be kept of them."""


def agent_types(workflow_class: type) -> Iterator[type]:
    """Return the classes that the state of an agent may contain; none for other workflows."""
    if is_agent(workflow_class):
        yield from _loaded(_HELD)


def data_types() -> Iterator[type]:
    """Return the classes of llama_index that are pure data; none if it is not loaded."""
    yield from _loaded(_DATA)


def with_nodes(value: Any) -> Any:
    """Return JSON in which documents, nodes and nodes with scores of llama_index are objects again.

    They tell the name of their class. An object that only looks like one stays as it is.
    """
    if isinstance(value, list):
        return [with_nodes(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: with_nodes(item) for name, item in value.items()}
    name = fields.get(_CLASS_NAME)
    cls = _node_classes().get(name) if isinstance(name, str) else None
    if cls is None:
        return fields
    try:
        return cls.model_validate(fields)
    except (ValidationError, TypeError):
        return fields


def _node_classes() -> dict[str, type[BaseModel]]:
    """Return the loaded classes of nodes that can be made, by the names that they write."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[Any] = [cls for cls in _loaded(_DATA) if cls.__name__ in _NODES]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if not inspect.isabstract(cls):
            found.setdefault(cls.class_name(), cls)
    return found


def _loaded(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    for module, name in names:
        cls = getattr(sys.modules.get(module), name, None)
        if isinstance(cls, type):
            yield cls


def is_agent(workflow_class: type) -> bool:
    """Return whether a workflow class is an agent of llama_index, or derived from one."""
    return any(base.__module__.startswith(_HOME) for base in workflow_class.__mro__)


def raw_fields(cls: type) -> frozenset[str]:
    """Return the fields of a class that are encoded as far as possible, and never cause an error."""
    return frozenset().union(*_of_bases(cls, _RAW_FIELDS))


def _of_bases(cls: type, table: Mapping[str, Any]) -> Iterator[Any]:
    for base in cls.__mro__:
        if (found := table.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            yield found


def reduced(value: object, *, levels: int = LEVELS) -> Any:
    """Return as much of a value as JSON can represent; other objects become None."""
    if levels and isinstance(value, Mapping):
        return {str(key): reduced(item, levels=levels - 1) for key, item in value.items()}
    if levels and isinstance(value, list | tuple):
        return [reduced(item, levels=levels - 1) for item in value]
    if find_live(value, path="") is not None:
        return None
    try:
        return pydantic_core.from_json(pydantic_core.to_json(value, inf_nan_mode="null"))
    except Exception:  # noqa: BLE001 - code of any class, and nothing that must be kept
        return None


def with_reduced_fields(value: Any, *, levels: int = 2 * LEVELS) -> Any:
    """Return a copy of a value in which the raw fields of all models contain only JSON."""
    if not levels:
        return value

    def reduce_all(items: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: with_reduced_fields(item, levels=levels - 1) for key, item in items.items()}

    if isinstance(value, BaseModel):
        raw = raw_fields(type(value))
        fields = vars(value)
        model = value.model_copy(update={name: reduced(fields[name]) for name in raw & fields.keys()})
        vars(model).update(reduce_all({name: item for name, item in fields.items() if name not in raw}))
        if model.__pydantic_private__:
            # The library's events keep undeclared fields here.
            model.__pydantic_private__.update(reduce_all(model.__pydantic_private__))
        return model
    if type(value) is dict:
        return reduce_all(value)
    if type(value) in (list, tuple):
        return type(value)(with_reduced_fields(item, levels=levels - 1) for item in value)
    return value
