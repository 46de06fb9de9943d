"""What the agents of llama_index hold beside what their steps declare, and what its data is.

llama_index is not needed to run this package and never imported: its classes are known by their names, and
are there if the workflow that is hosted has loaded them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel

_HOME: Final = "llama_index.core.agent"
_HELD: Final = (
    ("llama_index.core.memory.types", "BaseMemory"),
    ("llama_index.core.agent.react.types", "BaseReasoningStep"),
)
"""The roots of what stands in an agent's state: its memory, and what a ReAct agent has thought so far."""

_DATA: Final = (
    ("llama_index.core.schema", "BaseNode"),
    ("llama_index.core.schema", "NodeWithScore"),
    ("llama_index.core.base.llms.types", "ChatMessage"),
    ("llama_index.core.base.llms.types", "BaseContentBlock"),
)
"""The roots of what retrievers return and chats are made of."""

_RAW_FIELDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "llama_index.core.tools.types.ToolOutput": frozenset({"raw_input", "raw_output"}),
        "llama_index.core.base.llms.types.ChatMessage": frozenset({"additional_kwargs"}),
    }
)
"""Fields for what a tool or the client of an LLM has made, of any class; what matters stands beside them."""

_NO_MODEL: Final = (
    "which holds connections and keys, and is not written down: keep it in the workflow object, not in what "
    "is carried"
)
_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama_index.core.memory.memory.Memory": (
            "whose messages lie in a database and not in itself: take a `ChatMemoryBuffer`, or keep only its "
            "`session_id` and make it in each step, with an `async_database_uri` that all instances reach"
        ),
        "llama_index.core.base.llms.base.BaseLLM": _NO_MODEL,
        "llama_index.core.base.embeddings.base.BaseEmbedding": _NO_MODEL,
    }
)
"""Classes that look like data and are not, by name; their subclasses too."""

LEVELS: Final = 4
"""How deep containers are looked into for what can be kept of them."""


def agent_types(workflow_class: type) -> Iterator[type]:
    """Return what the state of an agent may hold; nothing for a workflow that is no agent."""
    if is_agent(workflow_class):
        yield from _loaded(_HELD)


def data_types() -> Iterator[type]:
    """Return the classes of llama_index that are data and no more; nothing where it is not loaded."""
    yield from _loaded(_DATA)


def _loaded(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    for module, name in names:
        cls = getattr(sys.modules.get(module), name, None)
        if isinstance(cls, type):
            yield cls


def is_agent(workflow_class: type) -> bool:
    """Return whether a class of workflows is one of llama_index's agents, or derived from one."""
    return any(base.__module__.startswith(_HOME) for base in workflow_class.__mro__)


def refusal(cls: type) -> str | None:
    """Return why objects of a class are never carried; None if they may be.

    The text goes on after the name of the class.
    """
    return next(_of_bases(cls, _REFUSED), None)


def raw_fields(cls: type) -> frozenset[str]:
    """Return the fields of a class that are carried as far as possible, and hold up nobody."""
    return frozenset().union(*_of_bases(cls, _RAW_FIELDS))


def _of_bases(cls: type, table: Mapping[str, Any]) -> Iterator[Any]:
    for base in cls.__mro__:
        if (found := table.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            yield found


def reduced(value: object, *, levels: int = LEVELS) -> Any:
    """Return as much of a value as JSON holds; an object that has no such form becomes None."""
    if levels and isinstance(value, Mapping):
        return {str(key): reduced(item, levels=levels - 1) for key, item in value.items()}
    if levels and isinstance(value, list | tuple):
        return [reduced(item, levels=levels - 1) for item in value]
    if refusal(type(value)) is not None:
        return None
    try:
        return pydantic_core.from_json(pydantic_core.to_json(value, inf_nan_mode="null"))
    except Exception:  # noqa: BLE001 - the code of anybody's classes, and nothing that must be kept
        return None


def with_reduced_fields(value: Any, *, levels: int = 2 * LEVELS) -> Any:
    """Return a copy of a value in which the raw fields of all models hold only what JSON does."""
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
            # The library's events keep what is not declared there.
            model.__pydantic_private__.update(reduce_all(model.__pydantic_private__))
        return model
    if type(value) is dict:
        return reduce_all(value)
    if type(value) in (list, tuple):
        return type(value)(with_reduced_fields(item, levels=levels - 1) for item in value)
    return value
