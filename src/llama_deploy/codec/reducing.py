"""Keeps as much as possible of values that other libraries have put into their objects.

See `codec.agents` for which fields these are.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel

from llama_deploy.codec.agents import is_opaque, raw_fields
from llama_deploy.codec.known_classes import is_scalar, take_scalar
from llama_deploy.portability.plain_checks import check_plain

LEVELS: Final = 4
"""How deep containers are searched for what can be kept of them."""


def reduced(value: object, *, levels: int = LEVELS) -> Any:
    """Return as much of a value as JSON can represent; other objects become None."""
    if levels and isinstance(value, Mapping):
        items = [reduced(item, levels=levels - 1) for item in value.values()]
        by_text = dict(zip(map(str, value), items, strict=True))
        if len(by_text) == len(items):
            return by_text
        return [[reduced(key, levels=0), item] for key, item in zip(value, items, strict=True)]
    if levels and isinstance(value, list | tuple):
        return [reduced(item, levels=levels - 1) for item in value]
    try:
        check_plain(value)
        return pydantic_core.from_json(pydantic_core.to_json(value, inf_nan_mode="null"))
    except Exception:  # noqa: BLE001 - code of any class, and nothing that must be kept
        return None


def with_reduced_fields(value: Any, *, levels: int = 2 * LEVELS) -> Any:
    """Return a copy of a value in which the raw fields of all models contain only JSON.

    Also, keys that are numpy's scalars become Python's, and a `PydanticResponse` becomes a dict.
    """
    cls = type(value)
    if not levels:
        return value
    if isinstance(value, BaseModel):
        return _reduced_model(value, levels)
    if dataclasses.is_dataclass(cls):
        return _reduced_dataclass(value, levels)
    if cls is dict:
        return _reduced_items(value, levels)
    if cls in (list, tuple):
        return cls(with_reduced_fields(item, levels=levels - 1) for item in value)
    return value


def _reduced_model(value: BaseModel, levels: int) -> BaseModel:
    raw = raw_fields(type(value))
    fields = vars(value)
    model = value.model_copy(update={name: reduced(fields[name]) for name in raw & fields.keys()})
    kept = {name: item for name, item in fields.items() if name not in raw}
    vars(model).update(_reduced_items(kept, levels))
    if model.__pydantic_private__:
        # The library's events keep undeclared fields here.
        model.__pydantic_private__.update(_reduced_items(model.__pydantic_private__, levels))
    return model


def _reduced_dataclass(value: Any, levels: int) -> Any:
    attributes = _reduced_items(getattr(value, "__dict__", {}), levels)
    if is_opaque(type(value)):
        return {field.name: attributes[field.name] for field in dataclasses.fields(value)}
    if not attributes:
        return value
    copied = copy.copy(value)
    vars(copied).update(attributes)
    return copied


def _reduced_items(items: Mapping[Any, Any], levels: int) -> dict[Any, Any]:
    return {
        take_scalar(key)[1] if is_scalar(type(key)) else key: with_reduced_fields(item, levels=levels - 1)
        for key, item in items.items()
    }
