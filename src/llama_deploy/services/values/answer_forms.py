"""What the answers to questions look like: their classes and JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic.errors import PydanticUserError
from workflows.events import Event

from llama_deploy.codec import qualified_name
from llama_deploy.services.values.sure_schemas import sure_schema

MAX_ANSWER_SCHEMA_CHARACTERS: Final = 32 * 1024
"""The size of the schema of an answer as JSON; one that is larger is left out."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer looks like."""

    event_types: list[str]
    """The qualified names of the classes that it may have, the expected one first."""
    schema: dict[str, Any]
    """The JSON schema of its fields; with several classes, `anyOf` their schemas."""
    check: dict[str, Any]
    """By class, a schema that all answers satisfy which the class accepts, as far as there is one."""


class AnswerForms:
    """Describes answers, each kind once. A schema takes a millisecond to make.

    Args:
        classes: The classes of the events that the workflow accepts.
    """

    def __init__(self, classes: Iterable[type[Event]]) -> None:
        self._classes = list(classes)
        self._forms: dict[tuple[type[Event], ...], AnswerForm] = {}

    def of_wait(self, awaited: type[Event], *, takes_subclasses: bool) -> AnswerForm:
        """Return the form of an answer to a step that waits for a class."""
        derived = [each for each in self._classes if each is not awaited and issubclass(each, awaited)]
        return self.of_classes([awaited, *(derived if takes_subclasses else ())])

    def of_classes(self, classes: Sequence[type[Event]]) -> AnswerForm:
        """Return the form of an answer of one of some classes."""
        key = tuple(classes)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = _form(key)
        return form


def _form(classes: Sequence[type[Event]]) -> AnswerForm:
    schemas = [_schema(cls) for cls in classes]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if len(json.dumps(schema)) > MAX_ANSWER_SCHEMA_CHARACTERS:
        schema = {}
    checks = {qualified_name(cls): sure_schema(cls) for cls in classes}
    return AnswerForm(list(checks), schema, {name: check for name, check in checks.items() if check})


def _schema(cls: type[Event]) -> dict[str, Any]:
    try:
        return cls.model_json_schema()
    except (PydanticUserError, TypeError, ValueError):
        return {"title": cls.__name__, "type": "object"}  # a field has no JSON schema
