"""The nodes of llama_index are written with the names of their fields, such as `metadata`.

Pydantic would write an alias from an early release, `extra_info`. Models of users keep their aliases, which
are the names in their JSON.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from llama_deploy.codec.agents import named_base
from llama_deploy.portability.json_parts import parts_of

_WITH_NAMES: Final[Mapping[str, bool]] = {"llama_index.core.schema.BaseNode": True}
"""The base classes of these models."""


@functools.lru_cache(maxsize=1024)
def is_written_with_names(cls: type) -> bool:
    """Return whether the fields of a model are written with their names."""
    return named_base(cls, _WITH_NAMES) is not None


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
