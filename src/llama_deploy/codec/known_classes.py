"""Classes that are known without being declared: llama_index's data, classes as values, numpy's scalars.

The lists are fixed. A name in the data selects an entry; it never reaches an import by itself. A module of
llama_index is imported when a value needs it, and numpy is not imported at all.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any, Final

from pydantic import BaseModel

from llama_deploy.codec.faults import Fault
from llama_deploy.codec.values import VALUE_KINDS, expect

LLAMA_INDEX: Final = "llama_index"

_MODULES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        module: frozenset(names.split())
        for module, names in {
            "llama_index.core.schema": "BaseNode Node TextNode ImageNode IndexNode Document ImageDocument "
            "NodeWithScore RelatedNodeInfo MediaResource QueryBundle NodeRelationship ObjectType Modality "
            "MetadataMode",
            "llama_index.core.base.llms.types": "ChatMessage ChatResponse CompletionResponse LogProb "
            "MessageRole TextBlock ImageBlock AudioBlock VideoBlock DocumentBlock CacheControl CachePoint "
            "CitableBlock CitationBlock ThinkingBlock ToolCallBlock",
            "llama_index.core.base.response.schema": "Response PydanticResponse",
            "llama_index.core.chat_engine.types": "AgentChatResponse",
            "llama_index.core.agent.workflow.workflow_events": "AgentInput AgentSetup AgentStream "
            "AgentStreamStructuredOutput AgentOutput ToolCall ToolCallResult AgentWorkflowStartEvent",
            "llama_index.core.agent.react.types": "BaseReasoningStep ActionReasoningStep "
            "ObservationReasoningStep ResponseReasoningStep",
            "llama_index.core.tools.types": "ToolOutput",
            "llama_index.core.llms.llm": "ToolSelection",
        }.items()
    }
)
"""The data of llama_index that any workflow may use, by module."""

_CLASSES: Final[Mapping[str, type]] = MappingProxyType(
    {
        f"{cls.__module__}.{cls.__qualname__}": cls
        for cls in (
            *(value for value in vars(builtins).values() if isinstance(value, type)),
            *(kind.cls for kind in VALUE_KINDS),
            NoneType,
            BaseModel,
        )
    }
)
"""Classes of Python and pydantic that may be values themselves, such as the types in `{"name": str}`."""

_SCALARS: Final = frozenset(
    {"bool", "bool_", "float16", "float32", "float64", "str_", "bytes_"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""The classes of numpy's scalars."""


def find_known(name: str) -> type | None:
    """Return a class of llama_index's data. None: the name is not on the list, or it is not installed."""
    module, _, bare = name.rpartition(".")
    if bare not in _MODULES.get(module, ()):
        return None
    try:
        found = getattr(importlib.import_module(module), bare, None)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def class_value(name: str) -> type | None:
    """Return a class of Python or pydantic that is a value itself. None: the name is not on the list."""
    return _CLASSES.get(name) or (_scalar_class(name.removeprefix("numpy.")) if "numpy." in name else None)


def name_of_class_value(cls: type) -> str | None:
    """Return the name with which `class_value` finds a class. None: it does not find it."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return name if class_value(name) is cls else None


def is_scalar(cls: type) -> bool:
    """Return whether a class is one of numpy's scalars that are supported."""
    return cls.__module__ == "numpy" and _scalar_class(cls.__name__) is cls


def take_scalar(value: Any) -> tuple[object, ...]:
    """Return the parts of a scalar of numpy."""
    return type(value).__name__, value.item()


def build_scalar(name: object, value: object) -> object:
    """Build a scalar of numpy.

    Raises:
        Fault: The name is not that of a scalar, or numpy is not loaded.
    """
    cls = _scalar_class(expect(str, name))
    if cls is None:
        raise Fault(f"names {name!r:.80}, which is not a scalar of numpy, or numpy is not loaded here")
    return cls(value)


def _scalar_class(name: str) -> type | None:
    numpy = sys.modules.get("numpy")
    found = getattr(numpy, name, None) if name in _SCALARS else None
    return found if isinstance(found, type) else None
