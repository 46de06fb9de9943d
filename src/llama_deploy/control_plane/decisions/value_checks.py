"""Checks of values against the JSON schemas that services register: run arguments and fields of events.

A value that the service may accept is never refused. So only the keywords below are read, and types are as
wide as those of pydantic, which reads a number also from a string.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_MAX_FAULTS: Final = 5
_MAX_DEPTH: Final = 20
_LIKENESS: Final = 0.8
_TRUTHS: Final = frozenset({"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"})


def faults_of(value: Mapping[str, Any], schema: Mapping[str, Any] | None) -> list[str]:
    """Return what is wrong with the fields of an object, each as `field: what was expected`.

    A key that the schema does not have is wrong if it is nearly the name of a field that is missing: other
    keys may be read by the workflow.

    Args:
        value: The fields.
        schema: A JSON schema of an object. None: everything is accepted.
    """
    if not schema:
        return []
    faults = [*_unknown_keys(value, schema), *_faults(value, schema, path="", depth=0)]
    return faults[:_MAX_FAULTS]


def _unknown_keys(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterable[str]:
    properties = _mapping(schema.get("properties"))
    missing = [name for name in properties if name not in value]
    for key in value:
        if key not in properties and not key.startswith("_"):
            for name in difflib.get_close_matches(key, missing, n=1, cutoff=_LIKENESS):
                yield f"{_shown_name(key)}: unknown; did you mean {name!r}?"


def _faults(value: Any, schema: Mapping[str, Any], *, path: str, depth: int) -> list[str]:
    if depth > _MAX_DEPTH:
        return []
    if isinstance(alternatives := schema.get("anyOf"), list):
        found = [_faults(value, _mapping(each), path=path, depth=depth + 1) for each in alternatives]
        if not all(found):
            return []
        # Of an object, say which field is wrong.
        deeper = [faults for faults in found if not faults[0].startswith(f"{path}: expected")]
        return deeper[0] if len(deeper) == 1 else [_fault(value, schema, path=path)]
    if not _matches(value, schema):
        return [_fault(value, schema, path=path)]
    if isinstance(value, Mapping):
        return _faults_of_fields(value, schema, path=path, depth=depth)
    items = _mapping(schema.get("items"))
    of_items = (
        _faults(each, items, path=f"{path}.{place}", depth=depth + 1)
        for place, each in enumerate(value if isinstance(value, list) and items else ())
    )
    return next(filter(None, of_items), [])


def _fault(value: Any, schema: Mapping[str, Any], *, path: str) -> str:
    return f"{path or 'value'}: expected {_expected(schema)}, not {reprlib.repr(value)}"


def _faults_of_fields(
    value: Mapping[str, Any], schema: Mapping[str, Any], *, path: str, depth: int
) -> list[str]:
    properties = _mapping(schema.get("properties"))
    prefix = f"{path}." if path else ""
    required = schema.get("required")
    missing = [
        f"{prefix}{name}: missing, expected {_expected(_mapping(properties.get(name)))}"
        for name in (required if isinstance(required, list) else [])
        if name not in value
    ]
    wrong = (
        _faults(value[name], _mapping(each), path=f"{prefix}{name}", depth=depth + 1)
        for name, each in properties.items()
        if name in value
    )
    return [*missing, *(fault for faults in wrong for fault in faults)]


def _matches(value: Any, schema: Mapping[str, Any]) -> bool:
    values, kind = schema.get("enum"), schema.get("type")
    if isinstance(values, list):
        return value in values
    check = _KINDS.get(kind) if isinstance(kind, str) else None
    return check is None or check(value)


def _expected(schema: Mapping[str, Any]) -> str:
    if isinstance(values := schema.get("enum"), list):
        return f"one of {', '.join(map(repr, values))}"
    if isinstance(alternatives := schema.get("anyOf"), list):
        return " or ".join(dict.fromkeys(_expected(_mapping(each)) for each in alternatives))
    kind = schema.get("type")
    return _WORDS.get(kind, "a value") if isinstance(kind, str) else "a value"


def _shown_name(name: str) -> str:
    return name if name.isidentifier() else reprlib.repr(name)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, bool | int | float)


def _is_integer(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and value.is_integer()
    return _is_number(value)


def _is_truth(value: object) -> bool:
    return value.strip().lower() in _TRUTHS if isinstance(value, str) else value in (0, 1)


_KINDS: Final[dict[str, Callable[[Any], bool]]] = {
    "integer": _is_integer,
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "boolean": _is_truth,
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, Mapping),
}
_WORDS: Final = {
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}
