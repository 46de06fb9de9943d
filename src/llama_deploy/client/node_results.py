"""The nodes of llama_index in results. Its models name an abstract class for them, which cannot be built."""

from __future__ import annotations

import sys
from typing import Any, Final

_MODULE: Final = "llama_index.core.schema"
_NODES: Final = frozenset({"Node", "TextNode", "ImageNode", "IndexNode", "Document", "ImageDocument"})


def with_nodes(value: Any) -> Any:
    """Return decoded JSON in which each node is an object of its class, if llama_index is loaded.

    Raises:
        pydantic.ValidationError: A node has other fields than its class.
    """
    if isinstance(value, list):
        return [with_nodes(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("class_name")
    if isinstance(name, str) and name in _NODES and (module := sys.modules.get(_MODULE)) is not None:
        return getattr(module, name).model_validate(value)
    return {key: with_nodes(item) for key, item in value.items()}
