"""JSON that can be stored, sent and read again without changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Final

import pydantic_core
from pydantic import AfterValidator

from llama_deploy.errors import InvalidRequestError, SerializationError

MAX_STORED_DEPTH: Final = 150
"""How deep objects and lists may be nested in a stored value. The JSON parser reads 201 levels, and messages
and answers wrap stored values in further ones."""


def encode_json(value: Any) -> str:
    """Return a value as JSON text.

    Raises:
        SerializationError: It holds something that JSON or UTF-8 cannot represent, such as NaN or a lone
            surrogate, or is nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()  # fails for lone surrogates
    except RecursionError as exc:
        raise SerializationError("the value is nested too deeply") from exc
    except (TypeError, ValueError) as exc:
        raise SerializationError(f"the value cannot be encoded as JSON: {exc}") from exc
    # A text with few brackets cannot be deep, and counting them is cheap.
    if text.count("{") + text.count("[") > MAX_STORED_DEPTH and is_deeper(value, MAX_STORED_DEPTH):
        raise SerializationError(f"the value is nested more than {MAX_STORED_DEPTH} levels deep; nest less")
    return text


def utf8_bytes(text: str) -> int:
    """Return how many bytes a text takes in UTF-8."""
    return len(text if text.isascii() else text.encode(errors="surrogatepass"))


def decode_object(text: str, *, what: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: The text.
        what: Names it in the error.

    Raises:
        InvalidRequestError: The text is not JSON, or not an object.
    """
    try:
        value = pydantic_core.from_json(text)
    except ValueError as exc:
        raise InvalidRequestError(f"{what} is not valid JSON: {exc}; it begins with {text[:40]!r}") from exc
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value


def same_json(left: str, right: str) -> bool:
    """Whether two texts are the same JSON value: the order of keys does not matter, 1, 1.0 and true differ.

    Texts that are not JSON are the same if they are equal.
    """
    if left == right:
        return True
    try:
        texts = [json.dumps(pydantic_core.from_json(text), sort_keys=True) for text in (left, right)]
    except (ValueError, RecursionError):
        return False
    return texts[0] == texts[1]


def check_keys(value: Mapping[Any, Any]) -> None:
    """Check that the keys of a mapping are different in JSON, where each key is a string.

    Raises:
        ValueError: Two keys are the same, such as `1` and `"1"`, or a key cannot be written.
    """
    seen: dict[str, Any] = {}
    for key in value:
        (text,) = pydantic_core.to_jsonable_python({key: None})
        if text in seen:
            raise ValueError(f"the keys {seen[text]!r} and {key!r} are the same in JSON: use strings as keys")
        seen[text] = key


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether objects and lists are nested more than `levels` deep."""
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
"""A JSON object that `encode_json` can encode."""
