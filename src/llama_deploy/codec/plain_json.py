"""Values as plain JSON, which clients in any language read: results, streamed events, and run arguments.

Encoding is strict: what does not have a form in JSON raises `SerializationError`, which names the place. See
`codec.typed_json` for JSON that keeps Python's types.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel
from workflows.events import Event, StopEvent

from llama_deploy.codec.reducing import with_reduced_fields
from llama_deploy.codec.type_registry import qualified_name
from llama_deploy.errors import SerializationError
from llama_deploy.portability.json_parts import of_numpy, step_to
from llama_deploy.portability.live_objects import check_portable
from llama_deploy.portability.nodes import with_field_names
from llama_deploy.portability.plain_checks import check_plain

_MAX_DIGITS: Final = 4300
"""How long integers may be that Python reads; see `sys.set_int_max_str_digits`."""
_LONG_NUMBER: Final = re.compile(rb"\d{%d}" % _MAX_DIGITS)
_ENCODING_ERRORS: Final = (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError)


def to_json_value(value: object, *, path: str = "$") -> Any:
    """Return `value` as JSON values.

    Models and dataclasses become objects; sets and tuples lists; dates, UUIDs, decimals and paths strings;
    enums their values; bytes the text that they contain in UTF-8; classes their qualified names; numpy's
    scalars and arrays numbers and lists; numbers that are not finite the strings `NaN`, `Infinity` and
    `-Infinity`, which pydantic reads as numbers.

    Args:
        value: The value. Iterators in it are not read.
        path: The place of the value, for errors.

    Raises:
        SerializationError: Something in it cannot be JSON: an object of another class, an iterator, bytes or
            a string that are not text, keys that are the same in JSON, a value that contains itself. Or it
            must not leave the process, see `live_objects`.
    """
    return measured(value, path=path)[0]


def measured(value: object, *, path: str = "$") -> tuple[Any, int]:
    """Return `value` as JSON values, and the length of their text in bytes; see `to_json_value`."""
    try:
        return _encode(value)
    except _ENCODING_ERRORS:
        # Perhaps because of the raw objects that an agent keeps.
        value = with_reduced_fields(value)
    check_portable(value, path=path)
    try:
        return _encode(value)
    except _ENCODING_ERRORS as exc:
        place, reason = _find_fault(value, path, exc)
        raise SerializationError(f"{place} cannot be written as JSON: {reason}", path=place) from exc


def _encode(value: object) -> tuple[Any, int]:
    has_names = check_plain(value)
    if isinstance(value, BaseModel) and not isinstance(value, type):
        # A stream that was read is not what its field declares.
        serializer = type(value).__pydantic_serializer__
        encoded = serializer.to_python(value, mode="json", by_alias=True, warnings=False, fallback=_otherwise)
    else:
        encoded = pydantic_core.to_jsonable_python(value, fallback=_otherwise)
    if has_names:
        encoded = with_field_names(value, encoded)
    text = pydantic_core.to_json(encoded, inf_nan_mode="constants")
    if b"NaN" in text or b"Infinity" in text:
        encoded = _with_finite_numbers(encoded)
    if len(text) > _MAX_DIGITS and _LONG_NUMBER.search(text):
        json.loads(text)  # fails for an integer that Python's parser does not read
    return encoded, len(text)


def _otherwise(value: Any) -> Any:
    """Return what stands in JSON for an object that pydantic does not know."""
    if isinstance(value, type):
        return qualified_name(value)
    if isinstance(value, types.GenericAlias | types.UnionType):
        return repr(value)
    plain = of_numpy(value)
    check_plain(plain)
    return plain


def _with_finite_numbers(value: Any) -> Any:
    """Return JSON in which `NaN` and infinite numbers are strings, which pydantic reads as numbers."""
    if type(value) is float:
        return value if math.isfinite(value) else _NAMES.get(value, "NaN")
    if type(value) is list:
        return [_with_finite_numbers(item) for item in value]
    if type(value) is dict:
        return {key: _with_finite_numbers(item) for key, item in value.items()}
    return value


_NAMES: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}


def _find_fault(value: object, path: str, exc: Exception, *, depth: int = 0) -> tuple[str, str]:
    """Return the innermost place that cannot be encoded, and why."""
    if depth < 50:  # noqa: PLR2004 - ends at values that contain themselves
        for step, child in _children(value):
            try:
                _encode(child)
            except _ENCODING_ERRORS as inner:
                return _find_fault(child, path + step, inner, depth=depth + 1)
    return path, f"{type(value).__name__}: {exc}"


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Event):
        yield from ((f".{name}", getattr(value, name)) for name in type(value).model_fields)
        yield from ((f".{name}", child) for name, child in Event.items(value))
        if isinstance(value, StopEvent):
            yield ".result", value.result
    elif isinstance(value, BaseModel):
        yield from ((f".{name}", child) for name, child in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((step_to(key), child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
