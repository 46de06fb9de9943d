"""The classes of llama_index: what its agents keep besides what their steps declare, and what is data.

This package does not need llama_index and never imports it. It finds the classes by name, if the hosted
workflow has loaded them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

T = TypeVar("T")

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
"""The base classes of what retrievers return and of chat messages. See also `codec.known_classes`."""

_RAW_FIELDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "llama_index.core.tools.types.ToolOutput": frozenset({"raw_input", "raw_output"}),
        "llama_index.core.base.llms.types.ChatMessage": frozenset({"additional_kwargs"}),
        "llama_index.core.base.llms.types.ChatResponse": frozenset({"raw", "additional_kwargs"}),
        "llama_index.core.base.llms.types.CompletionResponse": frozenset({"raw", "additional_kwargs"}),
    }
)
"""Fields with raw objects of tools and LLM clients, of any class; other fields hold the relevant data."""

_OPAQUE: Final[Mapping[str, bool]] = MappingProxyType(
    {"llama_index.core.base.response.schema.PydanticResponse": True}
)
_NO_MODEL: Final = (
    "which holds connections and keys, and is not stored: create it in `__init__` of the workflow or once "
    "for the module, and do not put it into events or state"
)
_REJECTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama_index.core.memory.memory.Memory": (
            "whose messages are in a database and not in the object: use a `ChatMemoryBuffer`, or keep only "
            "its `session_id` and create it in each step, with an `async_database_uri` that all instances "
            "reach"
        ),
        "llama_index.core.base.llms.base.BaseLLM": _NO_MODEL,
        "llama_index.core.base.embeddings.base.BaseEmbedding": _NO_MODEL,
    }
)
"""Classes, by name, that look like data and are not. Their subclasses are included."""


def agent_types(workflow_class: type) -> Iterator[type]:
    """Return the classes that the state of an agent may contain; none for other workflows."""
    if is_agent(workflow_class):
        yield from _loaded(_HELD)


def data_types() -> Iterator[type]:
    """Return the classes of llama_index that are pure data; none if it is not loaded."""
    yield from _loaded(_DATA)


def _loaded(names: Iterable[tuple[str, str]]) -> Iterator[type]:
    for module, name in names:
        cls = getattr(sys.modules.get(module), name, None)
        if isinstance(cls, type):
            yield cls


def is_agent(workflow_class: type) -> bool:
    """Return whether a workflow class is an agent of llama_index, or derived from one."""
    return any(base.__module__.startswith(_HOME) for base in workflow_class.__mro__)


def rejection(cls: type) -> str | None:
    """Return why objects of a class are never encoded. None: they may be.

    The text follows the name of the class.
    """
    return named_base(cls, _REJECTED)


def raw_fields(cls: type) -> frozenset[str]:
    """Return the fields of a class that are encoded as far as possible, and never cause an error."""
    return frozenset().union(*_of_bases(cls, _RAW_FIELDS))


def is_opaque(cls: type) -> bool:
    """Return whether a class is a dataclass that pydantic cannot write, because it answers any attribute."""
    return named_base(cls, _OPAQUE) is not None


def named_base(cls: type, table: Mapping[str, T]) -> T | None:
    """Return what a table of names has for a class, or for the first of its bases. None: nothing."""
    return next(_of_bases(cls, table), None)


def _of_bases(cls: type, table: Mapping[str, T]) -> Iterator[T]:
    for base in cls.__mro__:
        if (found := table.get(f"{base.__module__}.{base.__qualname__}")) is not None:
            yield found
