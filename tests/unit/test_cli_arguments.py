"""Run arguments on the command line, and summaries of schemas."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.error_messages import CommandError
from llama_deploy.cli.exit_codes import ExitCode
from llama_deploy.cli.schemas import example, summarize
from llama_deploy.cli.serving.announcement import example_commands
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.json_values import JsonObject


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("3", 3),
        ("true", True),
        ("null", None),
        ('["a", 1]', ["a", 1]),
        ('{"a": {"b": 1.5}}', {"a": {"b": 1.5}}),
        ('"3"', "3"),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("", ""),
        ("two words", "two words"),
    ],
)
def test_values_are_json_or_strings(given: str, taken: object) -> None:
    assert parse_arguments([f"key={given}"]) == {"key": taken}


@pytest.mark.parametrize(("given", "taken"), [("3", "3"), ('"3"', "3"), ("true", "true"), ("a", "a")])
def test_values_are_strings_where_a_string_is_expected(given: str, taken: str) -> None:
    schema = {"properties": {"key": {"type": "string"}}}
    assert parse_arguments([f"key={given}"], schema) == {"key": taken}


SCHEMA = {
    "$defs": {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}},
    "properties": {
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {"$ref": "#/$defs/Place"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "share": {"type": "number"},
        "flag": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"anyOf": [{"type": "array"}, {"type": "string"}]},
        "loop": {"$ref": "#/$defs/Loop"},
        "any": {},
    },
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tags=[1]", [1]),
        ("limit=null", None),
        ("share=.5", ".5"),
        ("share=NaN", "NaN"),
        ("flag=yes", "yes"),
        ("note=3", "3"),
        ("note=null", None),
        ('note="3"', "3"),
        ("either=[1", "[1"),
        ("either=[1]", [1]),
        ("any={", "{"),
        ("loop={", "{"),
        ("unknown=[", "["),
    ],
)
def test_values_fit_the_schema(text: str, value: object) -> None:
    assert parse_arguments([text], SCHEMA) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tags=[1, 2", "'tags' must be a list, and '[1, 2' is not JSON: "),
        ("tags=", "'tags' must be a list, and '' is not JSON: "),
        ("place={'a': 1}", "'place' must be an object, and"),
        ("limit=three", "'limit' must be an integer or null, and 'three' is not JSON"),
        ("share=half", "'share' must be a number, and 'half' is not JSON"),
        (f"tags=[{'1,' * 200}", "..."),
        (f"tags={'[' * 100_000}", "'tags' must be a list"),
    ],
)
def test_broken_json_names_the_argument(text: str, reason: str) -> None:
    with pytest.raises(CommandError) as refused:
        parse_arguments([text], SCHEMA)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300
    assert refused.value.exit_code == ExitCode.USAGE


def test_values_come_from_files(tmp_path: Path) -> None:
    whole, one = tmp_path / "whole.json", tmp_path / "one.txt"
    whole.write_text('{"question": "What is it?", "tags": [1]}')
    one.write_text("a long\ntext")
    assert parse_arguments([f"@{whole}", f"note=@{one}"]) == {
        "question": "What is it?",
        "tags": [1],
        "note": "a long\ntext",
    }
    with pytest.raises(CommandError, match="'tags' occurs twice"):
        parse_arguments([f"@{whole}", "tags=3"])


@pytest.mark.parametrize(
    ("content", "argument", "reason"),
    [
        (b"[1]", "@{}", "holds list, not an object"),
        (b"{", "@{}", "is not JSON"),
        (b"\xff", "@{}", "not text in UTF-8"),
        (b"\xff", "a=@{}", "not text in UTF-8"),
        (None, "@{}", "No such file"),
        (None, "a=@{}", "No such file"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, argument: str, reason: str
) -> None:
    file = tmp_path / "given"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CommandError, match=reason) as refused:
        parse_arguments([argument.format(file)])
    assert refused.value.hint


def test_the_error_says_how_to_pass_an_at_sign() -> None:
    with pytest.raises(CommandError) as refused:
        parse_arguments(["user=@ada"])
    assert refused.value.hint is not None
    *_, shown = shlex.split(refused.value.hint)
    assert parse_arguments([shown]) == {"user": "@ada"}


def test_summaries_of_schemas() -> None:
    schema = {
        "$defs": {"Colour": {"enum": ["red", "blue"], "title": "Colour"}, "Place": {"title": "Place"}},
        "properties": {
            "tags": {"type": "array", "items": {"type": "string"}},
            "colour": {"$ref": "#/$defs/Colour"},
            "place": {"$ref": "#/$defs/Place"},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
            "note": {"type": "string"},
        },
        "required": ["tags", "colour"],
    }
    assert summarize(schema) == (
        "tags: list of string, colour: 'red' | 'blue', place: Place (optional), "
        "limit: integer | null = None, note: string (optional)"
    )
    assert example(schema) == {"tags": [], "colour": "red"}
    assert (summarize(None), example(None)) == ("any", {})


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        ({"properties": {"limit": {"type": "integer"}}, "required": ["limit"]}, {"limit": 1}),
        ({"properties": {}}, {"KEY": "VALUE"}),
        (None, {"KEY": "VALUE"}),
    ],
)
def test_example_commands_have_arguments(schema: JsonObject | None, arguments: dict[str, object]) -> None:
    definition = ServiceDefinition(service_name="echo", input_schema=schema)
    run, curl, python = map(shlex.split, example_commands("http://127.0.0.1:8000", definition))
    pairs = [f"{key}={value}" for key, value in arguments.items()]
    assert run == ["llamactl", "run", "echo", *pairs]
    assert json.loads(curl[-1]) == {"service_name": "echo", "arguments": arguments}
    assert all(f"{key}={json.dumps(value)}" in python[-1] for key, value in arguments.items())
