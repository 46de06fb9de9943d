"""Run arguments and fields of events on the command line: `key=value`, `key=@file` and `@file`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.schemas import accepted_types

_STDIN: Final = "-"
_NAMES: Final = {"array": "a list", "object": "an object", "integer": "an integer", "number": "a number"}
"""What a value must be that is not a text, by its type in JSON Schema."""


def parse_arguments(
    texts: Sequence[str], schema: Mapping[str, Any] | None = None, *, what: str = "run argument"
) -> dict[str, Any]:
    """Read `key=value` pairs and files with objects.

    A value in JSON keeps its type: `3`, `true`, `null`, `[1, 2]`, `{"a": 1}`, `"3"`. Every other value is a
    string, and so is JSON where the schema expects a string. `key=@file` reads the value from a file, and
    `@file` reads an object of several values in JSON; the file `-` is stdin.

    Args:
        texts: The pairs.
        schema: The JSON schema of the object that they make up. None: not known.
        what: What a pair is, for errors.

    Raises:
        CommandError: A text is not a pair, a key occurs twice, a file cannot be used, or a value is not JSON
            where the schema expects a list, an object or a number.
    """
    arguments: dict[str, Any] = {}
    for text in map(_as_unicode, texts):
        for key, value in _read(text, schema or {}, what=what).items():
            if key in arguments:
                raise CommandError(f"the {what} {key!r} occurs twice", hint="remove one of them")
            arguments[key] = value
    return arguments


def _read(text: str, schema: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    if text.startswith("@"):
        return _read_object(text[1:])
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise CommandError(
            f"{text!r} is not a {what}", hint='write key=value, such as question="What is it?"'
        )
    if value.startswith("@"):
        hint = f"to pass a text that begins with @, write it as JSON: '{key}={json.dumps(value)}'"
        value = _read_file(value[1:], hint=hint)
    return {key: _parse_value(value, accepted_types(key, schema), name=f"the {what} {key!r}")}


def _read_object(path: str) -> dict[str, Any]:
    hint = 'the file must hold one JSON object, such as {"question": "What is it?"}'
    try:
        value = json.loads(_read_file(path, hint=hint), parse_constant=_reject_constant)
    except ValueError as exc:
        raise CommandError(f"{path} is not JSON: {exc}", hint=hint) from exc
    if not isinstance(value, dict):
        raise CommandError(f"{path} holds {type(value).__name__}, not an object", hint=hint)
    return value


def _read_file(path: str, *, hint: str) -> str:
    try:
        content = sys.stdin.buffer.read() if path == _STDIN else Path(path).read_bytes()
        return content.decode()
    except OSError as exc:
        raise CommandError(f"cannot read the file {path!r}: {exc.strerror}", hint=hint) from exc
    except ValueError as exc:
        raise CommandError(f"the file {path!r} is not text in UTF-8: {exc}", hint=hint) from exc


def _parse_value(text: str, types: frozenset[str] | None, *, name: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as exc:
        if types is not None and _must_be_json(text, types):
            expected = " or ".join(_NAMES.get(each, each) for each in sorted(types))
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
            raise CommandError(
                f"{name} must be {expected}, and {shown!r} is not JSON: {exc}",
                hint='quote it for the shell, such as \'tags=["a", "b"]\', or read it from a file: key=@file',
            ) from exc
        return text
    is_text = types is not None and "string" in types and _JSON_TYPES[type(value)].isdisjoint(types)
    return text if is_text else value


_JSON_TYPES: Final[dict[type, frozenset[str]]] = {
    str: frozenset({"string"}),
    bool: frozenset({"boolean"}),
    int: frozenset({"integer", "number"}),
    float: frozenset({"number"}),
    list: frozenset({"array"}),
    dict: frozenset({"object"}),
    type(None): frozenset({"null"}),
}
"""The types in JSON Schema of what JSON is read as."""
_SHOWN: Final = 80
"""How many characters of a value an error shows."""


def _must_be_json(text: str, types: frozenset[str]) -> bool:
    """Whether a text that is not JSON can be no value of these types.

    The workflow reads some texts as numbers and booleans that are not JSON, such as `.5` and `yes`.
    """
    if types & {"string", "boolean"}:
        return False
    if types & {"integer", "number"}:
        try:
            float(text)
        except ValueError:
            return True
        return False
    return bool(types & {"array", "object"})


def _as_unicode(text: str) -> str:
    """Return an argument that Python has decoded as another encoding than UTF-8, as with `LC_ALL=C`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode(errors="replace")
    return text


def _reject_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity, which are not JSON."""
    raise ValueError(f"{name} is not JSON")
