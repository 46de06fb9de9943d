"""Run arguments and fields of events on the command line: `key=value`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from llama_deploy.cli.error_messages import CommandError


def parse_arguments(
    texts: Sequence[str], schema: Mapping[str, Any] | None = None, *, what: str = "run argument"
) -> dict[str, Any]:
    """Read `key=value` pairs.

    A value in JSON keeps its type: `3`, `true`, `null`, `[1, 2]`, `{"a": 1}`, `"3"`. Every other value is a
    string, and so is JSON where the schema expects a string.

    Args:
        texts: The pairs.
        schema: The JSON schema of the object that they make up. None: not known.
        what: What a pair is, for errors.

    Raises:
        CommandError: A text is not a pair, or a key occurs twice.
    """
    properties = (schema or {}).get("properties", {})
    arguments: dict[str, Any] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise CommandError(
                f"{text!r} is not a {what}", hint='write key=value, such as question="What is it?"'
            )
        if key in arguments:
            raise CommandError(f"the {what} {key!r} occurs twice", hint="remove one of them")
        arguments[key] = _parse_value(value, expects_text=_is_text(properties.get(key)))
    return arguments


def _is_text(schema: object) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def _parse_value(text: str, *, expects_text: bool) -> Any:
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except ValueError:
        return text
    return text if expects_text and not isinstance(value, str) else value


def _reject_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(name)
