"""Values of a workflow as JSON: results, streamed events, and the events that clients send.

Encoding is strict: a value without a plain form in JSON raises `SerializationError`, which names the place
inside the value. Decoding builds only classes that the workflow declares; no name in a payload is imported.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, ValidationError
from workflows import Workflow
from workflows.events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    InternalDispatchEvent,
    StartEvent,
    StopEvent,
)

from llama_deploy.codec import qualified_name
from llama_deploy.codec.agents import is_agent, with_nodes, with_reduced_fields
from llama_deploy.codec.type_registry import classes_in_modules_of
from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.live_objects import check_portable, find_live
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import EventPayload
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.workflow_library import UNDECLARED

_PLAIN: Final = (bool, int, float, str, list, dict)
_NOT_FROM_OUTSIDE: Final = (StartEvent, StopEvent, InternalDispatchEvent)
"""Events that begin or end a run, or are internal to the library."""
_ENCODING_ERRORS: Final = (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError)


def to_json_value(value: object, *, path: str = "$") -> Any:
    """Return `value` as JSON values.

    Models and dataclasses become objects; sets and tuples lists; dates, UUIDs, decimals and paths strings;
    enums their values; bytes the text that they contain in UTF-8.

    Args:
        value: The value.
        path: The place of the value, for errors.

    Raises:
        SerializationError: Something in it cannot be JSON: an object of another class, a number that is not
            finite, bytes or a string that are not text, a value that contains itself. Or it must not leave
            the process, see `live_objects`.
    """
    return measured(value, path=path)[0]


def measured(value: object, *, path: str = "$") -> tuple[Any, int]:
    """Return `value` as JSON values, and the length of their text in bytes; see `to_json_value`."""
    is_reduced = find_live(value, path=path) is not None
    if is_reduced:
        # It may be one of the raw objects that an agent keeps.
        value = with_reduced_fields(value)
        check_portable(value, path=path)
    try:
        return _encode(value)
    except _ENCODING_ERRORS:
        value = value if is_reduced else with_reduced_fields(value)
    try:
        return _encode(value)
    except _ENCODING_ERRORS as exc:
        place, reason = _find_fault(value, path, exc)
        raise SerializationError(f"{place} cannot be written as JSON: {reason}", path=place) from exc


def _encode(value: object) -> tuple[Any, int]:
    encoded = pydantic_core.to_jsonable_python(value)
    text = pydantic_core.to_json(encoded, inf_nan_mode="constants")
    # The standard library takes four times as long, so it only checks texts that may contain such a number.
    if b"NaN" in text or b"Infinity" in text:
        json.dumps(encoded, allow_nan=False)
    return encoded, len(text)


def _find_fault(value: object, path: str, exc: Exception, *, depth: int = 0) -> tuple[str, str]:
    """Return the innermost place that cannot be encoded, and why."""
    if depth < 50:  # noqa: PLR2004 - ends at values that contain themselves
        for step, child in _children(value):
            try:
                _encode(child)
            except _ENCODING_ERRORS as inner:
                return _find_fault(child, path + step, inner, depth=depth + 1)
    return path, f"{type(value).__name__}: {exc}"


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Event):
        yield from ((f".{name}", getattr(value, name)) for name in type(value).model_fields)
        yield from ((f".{name}", child) for name, child in value.items())
        if isinstance(value, StopEvent):
            yield ".result", value.result
    elif isinstance(value, BaseModel):
        yield from ((f".{name}", child) for name, child in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((f".{key}", child) for key, child in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))


def value_type_of(value: object) -> str | None:
    """Return the qualified name of a value's class. None: the value is plain JSON."""
    return None if value is None or type(value) in _PLAIN else qualified_name(type(value))


@dataclasses.dataclass(frozen=True, slots=True)
class StreamedEvent:
    """A streamed event in the form in which it is sent."""

    payload: EventPayload
    size: int
    """Its approximate length as JSON, in bytes."""


def streamed_event(event: Event) -> StreamedEvent:
    """Return a workflow's event as it is streamed: declared and undeclared fields side by side.

    Raises:
        SerializationError: A field cannot be written as JSON; the path begins with the event's class.
    """
    name = type(event).__name__
    fields, size = measured(event, path=name)
    return StreamedEvent(EventPayload(type=name, data={**fields.pop(UNDECLARED, {}), **fields}), size)


class EventRegistry:
    """The event classes that can be sent to a workflow.

    Args:
        workflow: The events that its steps take or return are included, and the answers of people
            (`HumanResponseEvent` and derived classes) that its module defines or imports by name.
        extra: Further classes, such as other events that appear only in `ctx.wait_for_event`.
    """

    def __init__(self, workflow: Workflow, extra: Iterable[type] = ()) -> None:
        self._by_name: dict[str, type[Event]] = {}
        by_short_name: dict[str, set[type[Event]]] = {}
        named = [cls for cls in classes_in_modules_of(type(workflow)) if issubclass(cls, Event)]
        declared = [*workflow.events, *(cls for cls in extra if issubclass(cls, Event))]
        named_answers = _derived(HumanResponseEvent, named)
        self.questions = _names(_derived(InputRequiredEvent, [*declared, *named, InputRequiredEvent]))
        """The names of the classes that ask for an answer when they are streamed."""
        self.answers = _names(_derived(HumanResponseEvent, declared) or named_answers)
        """The names of the classes that answer a question: those of the steps, or else of the module."""
        classes = [*declared, *named_answers]
        if is_agent(type(workflow)):
            # Tools of an agent may wait for these; no step declares them.
            classes.append(HumanResponseEvent)
        for cls in classes:
            if issubclass(cls, _NOT_FROM_OUTSIDE):
                continue
            # The library writes `module.__name__`, so a nested class has two names.
            self._by_name[f"{cls.__module__}.{cls.__name__}"] = cls
            self._by_name[qualified_name(cls)] = cls
            by_short_name.setdefault(cls.__name__, set()).add(cls)
        self._by_name |= {name: cls for name, (cls, *more) in by_short_name.items() if not more}

    @property
    def names(self) -> list[str]:
        """The qualified names of the classes."""
        return sorted({qualified_name(cls) for cls in self._by_name.values()})

    def decode(self, definition: EventDefinition) -> Event:
        """Build an event.

        The event's JSON is `{"qualified_name": "module.Class", "value": {...}}`, as the workflow library
        writes it, or `{"type": "Class", "value": {...}}`.

        Raises:
            InvalidRequestError: It does not have this form, the class is not known, or a field is not valid.
        """
        name, fields = definition.content()
        # The sender may have the class in another module, such as `__main__` of a script.
        cls = self._by_name.get(name) or self._by_name.get(name.rpartition(".")[2])
        if cls is None:
            raise InvalidRequestError(
                f"the workflow has no event {name!r}, only {', '.join(self.names) or 'none'}. An event that "
                "appears only in ctx.wait_for_event must be a HumanResponseEvent, or be named in "
                "`allowed_types` of the service"
            )
        return build_event(cls, fields)


def _derived(base: type[Event], classes: Iterable[type[Event]]) -> list[type[Event]]:
    return [cls for cls in classes if issubclass(cls, base)]


def _names(classes: Iterable[type]) -> list[str]:
    return sorted({cls.__name__ for cls in classes})


def build_event(cls: type[Event], fields: dict[str, Any]) -> Event:
    """Build an event from decoded JSON.

    Documents and nodes of llama_index are objects again, also in fields that are not declared.

    Raises:
        InvalidRequestError: The fields are not valid; the text lists pydantic's findings.
    """
    # The library's events accept private attributes as arguments; only undeclared fields are allowed.
    private = fields.keys() & cls.__private_attributes__.keys()
    if private - {UNDECLARED} or not isinstance(fields.get(UNDECLARED, {}), dict):
        raise InvalidRequestError(f"{cls.__name__}: {', '.join(sorted(private))}: not allowed as fields")
    declared = cls.model_fields
    fields = {name: item if name in declared else with_nodes(item) for name, item in fields.items()}
    try:
        try:
            return cls.model_validate(fields)
        except TypeError:
            # A declared field is of an abstract class, such as the node of a NodeWithScore.
            return cls.model_validate(with_nodes(fields))
    except ValidationError as exc:
        raise InvalidRequestError(f"{cls.__name__}: {describe_validation_error(exc)}") from exc
    except (TypeError, ValueError) as exc:
        raise InvalidRequestError(f"{cls.__name__}: {exc}") from exc
