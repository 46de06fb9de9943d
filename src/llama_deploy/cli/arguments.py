"""Run arguments on the command line: `key=value`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from llama_deploy.cli.error_messages import CommandError


def parse_arguments(texts: Sequence[str], schema: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read `key=value` pairs.

    A value that is JSON is taken as that: `3`, `true`, `null`, `[1, 2]`, `{"a": 1}`, `"3"`. Anything else is
    a string, and so is JSON where the schema asks for a string.

    Args:
        texts: The pairs.
        schema: The JSON schema of the run arguments, if it is known.

    Raises:
        CommandError: Not a pair, or a key twice.
    """
    properties = (schema or {}).get("properties", {})
    arguments: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise CommandError(
                f"{text!r} is not an argument", hint='write key=value, such as question="What is it?"'
            )
        if key in arguments:
            raise CommandError(f"the argument {key!r} is given twice", hint="leave one of them out")
        arguments[key] = _parse_value(value, only_text=_is_text(properties.get(key)))
    return arguments


def _is_text(schema: object) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _parse_value(text: str, *, only_text: bool) -> Any:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text
    return text if only_text and not isinstance(value, str) else value


def _refuse_constant(name: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON."""
    raise ValueError(name)
