"""Short summaries of JSON schemas, and example values for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

ANYTHING: Final = "any"
_MAX_DEPTH: Final = 8
"""How many references and alternatives are followed, because they may form a circle."""

_EXAMPLES: Final[dict[str, Any]] = {
    "string": "hello",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


def summarize(schema: Mapping[str, Any] | None) -> str:
    """Return an object's fields on one line, such as `question: string, limit: integer = 5`.

    Args:
        schema: A JSON schema. None, or a schema without fields: any value is accepted.
    """
    properties = (schema or {}).get("properties")
    if not schema or not properties:
        return ANYTHING
    required = schema.get("required", [])
    return ", ".join(
        _field(name, field, schema, required=name in required) for name, field in properties.items()
    )


def example(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return example values for the required fields, or for the first field if none is required."""
    properties = (schema or {}).get("properties")
    if not schema or not properties:
        return {}
    names = schema.get("required") or list(properties)[:1]
    return {name: _example_value(properties.get(name, {}), schema) for name in names}


def summarize_field(field: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return what a property of an object takes, such as `integer = 5`."""
    default = f" = {json.dumps(field['default'])}" if "default" in field else ""
    return f"{_type(field, schema)}{default}"


def choices_of(field: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of which a property must have one. None: it may have others."""
    resolved = field
    for _ in range(_MAX_DEPTH):
        following = _resolve(resolved, schema)
        if following is resolved:
            break
        resolved = following
    if "const" in resolved:
        return [resolved["const"]]
    values = resolved.get("enum")
    return list(values) if isinstance(values, list) else None


def accepted_types(name: str, schema: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the types in JSON Schema that a property of an object may have. None: not known, or any."""
    properties = schema.get("properties")
    field = properties.get(name) if isinstance(properties, Mapping) else None
    return _types_of(field, schema, depth=_MAX_DEPTH) if isinstance(field, Mapping) else None


def _types_of(field: Mapping[str, Any], root: Mapping[str, Any], *, depth: int) -> frozenset[str] | None:
    resolved = _resolve(field, root)
    if depth and resolved is not field:
        return _types_of(resolved, root, depth=depth - 1)
    if depth and (alternatives := field.get("anyOf") or field.get("oneOf")):
        found = [_types_of(each, root, depth=depth - 1) for each in alternatives]
        return None if None in found else frozenset().union(*filter(None, found))
    kind = field.get("type")
    return frozenset([kind] if isinstance(kind, str) else kind) if kind else None


def _field(name: str, field: Mapping[str, Any], root: Mapping[str, Any], *, required: bool) -> str:
    words = f"{name}: {_type(field, root)}"
    if "default" in field:
        return f"{words} = {field['default']!r}"
    return words if required else f"{words} (optional)"


def _resolve(field: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(field.get("$ref", "")).removeprefix("#/$defs/")
    found = root.get("$defs", {}).get(name) if name else None
    return found if isinstance(found, Mapping) else field


def _type(field: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(repr(value) for value in field["enum"])
    if "const" in field:
        return repr(field["const"])
    resolved = _resolve(field, root)
    if resolved is not field:
        return _type(resolved, root) if "enum" in resolved else str(resolved.get("title", ANYTHING))
    alternatives = field.get("anyOf") or field.get("oneOf")
    if alternatives:
        return " | ".join(_type(alternative, root) for alternative in alternatives)
    kind = field.get("type", ANYTHING)
    if kind == "array":
        return f"list of {_type(field.get('items', {}), root)}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _example_value(field: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    field = _resolve(field, root)
    if "const" in field:
        return field["const"]
    if field.get("enum"):
        return field["enum"][0]
    alternatives = field.get("anyOf") or field.get("oneOf")
    if alternatives:
        return _example_value(alternatives[0], root)
    if field.get("type") == "object" and "properties" in field:
        return {name: _example_value(field["properties"][name], root) for name in field.get("required", [])}
    kind = field.get("type", "string")
    return _EXAMPLES.get(kind if isinstance(kind, str) else kind[0])
