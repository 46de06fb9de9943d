"""JSON that can be stored, sent on and read again as it is."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

from pydantic import AfterValidator

from llama_deploy.errors import SerializationError

MAX_STORED_DEPTH: Final = 150
"""The most objects and lists inside each other in a stored value. pydantic's parser reads 201 levels, and
what carries stored values wraps them into some more."""


def encode_json(value: Any) -> str:
    """Return a value as JSON text.

    Raises:
        SerializationError: It holds something that has no form in JSON or UTF-8, such as NaN or a lone
            surrogate, or is nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # fails for lone surrogates
    except RecursionError as exc:
        raise SerializationError("it is nested too deeply") from exc
    except (TypeError, ValueError) as exc:
        raise SerializationError(f"it cannot be carried as JSON: {exc}") from exc
    # Few brackets are few levels, and to count them costs next to nothing.
    if text.count("{") + text.count("[") > MAX_STORED_DEPTH and is_deeper(value, MAX_STORED_DEPTH):
        raise SerializationError(f"it is nested more than {MAX_STORED_DEPTH} levels deep; nest less")
    return text


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether objects and lists stand inside each other on more levels than that."""
    level: list[dict[str, Any] | list[Any]] = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    try:
        encode_json(value)
    except SerializationError as exc:
        raise ValueError(str(exc)) from exc
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
"""A JSON object; refuses what `encode_json` does."""
