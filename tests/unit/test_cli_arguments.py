"""Run arguments on the command line, and summaries of schemas."""

from __future__ import annotations

import json
import shlex

import pytest

from llama_deploy.cli.announcement import example_commands
from llama_deploy.cli.arguments import parse_arguments
from llama_deploy.cli.schemas import example, summarize
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
