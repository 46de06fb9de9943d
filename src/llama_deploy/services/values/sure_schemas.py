"""JSON schemas that can be relied on: what a class accepts satisfies them, whatever its own code does.

The JSON schema that pydantic writes describes what a class should get. Validators, aliases and constructors
may accept more. So this reads what pydantic checks, its core schema, and says nothing about all else: an
empty schema accepts everything.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from workflows import Workflow
from workflows.events import Event, StartEvent

MAX_SCHEMA_CHARACTERS: Final = 8 * 1024
"""The size of the schema of one class as JSON; one that is larger is left out."""
MAX_SCHEMAS_CHARACTERS: Final = 16 * 1024
"""The size of the schemas of all events of a service; the last ones by name are left out."""
_MAX_DEPTH: Final = 6
_MAX_PARTS: Final = 400
_TYPES: Final = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    "none": "null",
    "set": "array",
    "frozenset": "array",
    "tuple": "array",
    "dict": "object",
}
"""The types of JSON for pydantic's."""
_LIBRARIES: Final = frozenset({"workflows", "llama_index"})
"""Packages whose models are written in forms of their own."""

Schema = dict[str, Any]


def input_check(workflow: Workflow) -> Schema | None:
    """Return what the run arguments of a workflow have to satisfy. None: anything may be accepted."""
    if type(workflow).run is not Workflow.run or "run" in vars(workflow):
        return None
    cls = workflow.start_event_class
    return None if cls is StartEvent else sure_schema(cls)


def event_schemas(classes: Mapping[str, type[Event]]) -> dict[str, Schema]:
    """Return what the fields of events have to satisfy, by the names of their classes."""
    found: dict[str, Schema] = {}
    size = 0
    for name, cls in sorted(classes.items()):
        schema = sure_schema(cls)
        if (
            schema is not None
            and (size := size + len(name) + len(json.dumps(schema))) < MAX_SCHEMAS_CHARACTERS
        ):
            found[name] = schema
    return found


def sure_schema(cls: type[Event]) -> Schema | None:
    """Return the schema of an event's fields. None: there is nothing to rely on."""
    if not _has_plain_constructor(cls):
        return None
    try:
        core: Any = cls.__pydantic_core_schema__
        if not isinstance(core, dict) and cls.model_rebuild():
            core = cls.__pydantic_core_schema__
    except (AttributeError, NameError, PydanticUserError):
        return None
    if not isinstance(core, dict):
        return None
    schema = _Reader().schema_of_event(core)
    return schema if schema and len(json.dumps(schema)) <= MAX_SCHEMA_CHARACTERS else None


def _has_plain_constructor(cls: type[Event]) -> bool:
    """Whether an event is built by the library's code only."""
    own = [each for each in cls.__mro__ if not _is_of_library(each) and each is not object]
    return not any(name in vars(each) for each in own for name in ("__init__", "__new__", "model_validate"))


def _is_of_library(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in {*_LIBRARIES, "pydantic"}


@dataclass(slots=True)
class _Reader:
    """Reads a core schema; see https://docs.pydantic.dev/latest/api/pydantic_core_schema/."""

    _definitions: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _parts: int = 0

    def schema_of_event(self, core: Mapping[str, Any]) -> Schema:
        if core["type"] == "definitions":
            self._definitions = {each["ref"]: each for each in core["definitions"] if "ref" in each}
            core = core["schema"]
        core = self._without_narrowing(core)
        return self._fields(core, depth=0) if core["type"] == "model" else {}

    def _without_narrowing(self, core: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow references, and skip validators that get only what was accepted before."""
        for _ in range(_MAX_DEPTH):
            if core["type"] == "definition-ref":
                core = self._definitions.get(core["schema_ref"], {"type": "any"})
            elif core["type"] == "function-after":
                core = core["schema"]
            else:
                return core
        return {"type": "any"}

    def _schema(self, core: Mapping[str, Any], *, depth: int) -> Schema:
        core = self._without_narrowing(core)
        self._parts += 1
        if depth > _MAX_DEPTH or self._parts > _MAX_PARTS:
            return {}
        kind = core["type"]
        if kind in _TYPES:
            return {"type": _TYPES[kind]}
        readers: Mapping[str, Callable[[Mapping[str, Any], int], Schema]] = {
            "default": lambda core, depth: self._schema(core["schema"], depth=depth),
            "nullable": lambda core, depth: self._any_of([core["schema"], {"type": "none"}], depth=depth),
            "union": self._union,
            "list": self._list,
            "literal": lambda core, _: _one_of(core["expected"]),
            "enum": lambda core, _: _enum(core),
            "model": self._model,
        }
        read = readers.get(kind)
        return {} if read is None else read(core, depth)

    def _union(self, core: Mapping[str, Any], depth: int) -> Schema:
        choices = [each[0] if isinstance(each, tuple) else each for each in core["choices"]]
        return self._any_of(choices, depth=depth)

    def _list(self, core: Mapping[str, Any], depth: int) -> Schema:
        items = self._schema(core["items_schema"], depth=depth + 1) if "items_schema" in core else {}
        return {"type": "array", "items": items} if items else {"type": "array"}

    def _any_of(self, choices: list[Mapping[str, Any]], *, depth: int) -> Schema:
        schemas = [self._schema(each, depth=depth + 1) for each in choices]
        return {"anyOf": schemas} if all(schemas) else {}

    def _model(self, core: Mapping[str, Any], depth: int) -> Schema:
        cls: type[BaseModel] = core["cls"]
        if (
            core.get("custom_init")
            or core.get("root_model")
            or inspect.isabstract(cls)
            or _is_of_library(cls)
        ):
            return {}
        return self._fields(core, depth=depth)

    def _fields(self, core: Mapping[str, Any], *, depth: int) -> Schema:
        config: Mapping[str, Any] = core.get("config") or {}
        inner = self._without_narrowing(core["schema"])
        # With this setting a number is a string too; and a name of a field is not the key with an alias.
        if inner["type"] != "model-fields" or config.get("coerce_numbers_to_str"):
            return {}
        fields: Mapping[str, Mapping[str, Any]] = inner["fields"]
        if not fields or any("validation_alias" in each for each in fields.values()):
            return {}
        schema: Schema = {
            "type": "object",
            "properties": {
                name: self._schema(each["schema"], depth=depth + 1) for name, each in fields.items()
            },
        }
        required = [name for name, each in fields.items() if not self._has_default(each["schema"])]
        return schema | ({"required": required} if required else {})

    def _has_default(self, core: Mapping[str, Any]) -> bool:
        """Whether a field may be missing. A validator around a default may keep it or not."""
        for _ in range(_MAX_DEPTH):
            if core["type"] == "definition-ref":
                core = self._definitions.get(core["schema_ref"], {"type": "default"})
            if core["type"] == "default":
                return True
            if not isinstance(core.get("schema"), dict):
                return False
            core = core["schema"]
        return True


def _enum(core: Mapping[str, Any]) -> Schema:
    is_exact = not core.get("missing") and core.get("sub_type") in (None, "str")
    return _one_of([member.value for member in core["members"]]) if is_exact else {}


def _one_of(values: list[Any]) -> Schema:
    """Return the schema of one of some values, if JSON tells them apart."""
    plain = all(value is None or type(value) in (str, int, bool) for value in values)
    return {"enum": list(values)} if plain else {}
