"""Every wire model ignores fields that it does not know, so that a rolling upgrade works in either order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import BaseModel
from pydantic_settings import BaseSettings

import llama_deploy
from llama_deploy.errors import RunMismatchError
from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.services.run.journal.journal_format import RunSnapshot

UNKNOWN: Final = "a_field_of_a_newer_release"


def wire_models() -> list[type[BaseModel]]:
    """Return the pydantic models of the package that hold neither settings nor live objects."""
    root = Path(llama_deploy.__file__).parent
    for file in root.rglob("*.py"):
        # The others may need a broker's driver, which other tests want to see imported only when it is used.
        if "BaseModel" in file.read_text():
            importlib.import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
    own = {model for model in _subclasses(BaseModel) if model.__module__.startswith("llama_deploy.")}
    not_wire = (BaseSettings, BaseMessageQueueConsumer)
    return sorted(
        (model for model in own if not issubclass(model, not_wire)), key=lambda model: model.__qualname__
    )


def _subclasses(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


@dataclass(frozen=True)
class Example:
    """Builds a value of a JSON schema with all its fields."""

    definitions: dict[str, Any]
    newer: bool
    """Whether every object has an unknown field too."""

    def of(self, schema: dict[str, Any]) -> Any:
        while "$ref" in schema or "anyOf" in schema:
            schema = (
                self.definitions[schema["$ref"].rpartition("/")[2]]
                if "$ref" in schema
                else next(each for each in schema["anyOf"] if each != {"type": "null"})
            )
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[-1])
        simple = {
            "string": "2026-01-02T03:04:05Z" if schema.get("format") == "date-time" else "text",
            "integer": schema.get("minimum", 0) + 1,
            "number": schema.get("minimum", 0) + 1,
            "boolean": True,
            None: {"any": 1},
        }
        if schema.get("type") in simple:
            return simple[schema.get("type")]
        return self._list(schema) if schema["type"] == "array" else self._object(schema)

    def _list(self, schema: dict[str, Any]) -> list[Any]:
        return [self.of(each) for each in schema.get("prefixItems") or [schema["items"]]]

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        if "properties" not in schema:
            values = schema.get("additionalProperties")
            return {"any": self.of(values if isinstance(values, dict) else {})}
        value = {name: self.of(each) for name, each in schema["properties"].items() if name != "v"}
        return {**value, UNKNOWN: {"nested": [1]}} if self.newer else value


def test_the_models_are_found() -> None:
    names = {model.__name__ for model in wire_models()}
    assert {"QueueMessage", "TaskSubmission", "ClaimReply", "TopicOptions", "RunSnapshot"} <= names


REFUSING = {
    *("BulkRequest", "PurgeRequest", "RetentionRule", "TaskFilter", "TaskListQuery", "AuditQuery"),
    *("NewApiKey", "NewToken"),
}
"""Where a field that is ignored would list, cancel, remove or allow more than was asked for."""
DESCRIBING = {"Problem"}
"""Models that only describe documents to clients; nothing is read with them."""


@pytest.mark.parametrize(
    "model",
    [model for model in wire_models() if model.__name__ not in REFUSING | DESCRIBING],
    ids=lambda model: model.__name__,
)
def test_unknown_fields_are_ignored_at_every_level(model: type[BaseModel]) -> None:
    schema = model.model_json_schema(mode="validation")
    known, newer = (Example(schema.get("$defs", {}), newer=newer).of(schema) for newer in (False, True))
    assert newer[UNKNOWN]

    read, expected = model.model_validate(newer), model.model_validate(known)

    assert {name: _known(getattr(read, name)) for name in model.model_fields} == {
        name: _known(getattr(expected, name)) for name in model.model_fields
    }


def _known(value: Any) -> Any:
    """Return a value without the unknown fields that a model keeps in order to pass them on."""
    if isinstance(value, BaseModel):
        return type(value), {name: _known(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return value


def test_a_snapshot_of_another_format_is_refused_before_its_fields_are_read() -> None:
    with pytest.raises(RunMismatchError, match="format 2 but this release reads format 1; resume"):
        RunSnapshot.model_validate_json('{"format": 2, "steps": []}')
