"""JSON that can be stored and sent on as it is."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

T = TypeVar("T")


def encode_json(value: Any) -> str:
    """Return a value as JSON text.

    Raises:
        ValueError: It holds NaN, infinity, a lone surrogate or itself, or is nested too deeply.
        TypeError: It holds something that has no form in JSON.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc
    return text


def _storable(value: T) -> T:
    encode_json(value)
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
"""A JSON object; refuses what JSON or UTF-8 has no form for."""
