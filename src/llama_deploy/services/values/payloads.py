"""Streamed events as JSON, and the events that clients send.

Decoding builds only classes that the workflow declares; no name in a payload is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

from pydantic import ValidationError
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
from llama_deploy.codec.plain_json import measured
from llama_deploy.codec.texts import valid_text
from llama_deploy.codec.type_registry import ALLOW_IT, classes_in_modules_of, questions_and_answers_near
from llama_deploy.errors import InvalidRequestError
from llama_deploy.portability.nodes import with_nodes
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import INPUT_REJECTED, EventPayload
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.workflow_library import UNDECLARED

_PLAIN: Final = (bool, int, float, str, list, dict)
_NOT_FROM_OUTSIDE: Final = (StartEvent, StopEvent, InternalDispatchEvent)
"""Events that begin or end a run, or are internal to the library."""
_OF_EVERYBODY: Final[tuple[type[Event], ...]] = (HumanResponseEvent, InputRequiredEvent)
"""Events that any workflow may wait for."""


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
    fields, size = measured(event, path=f"event {name}")
    return StreamedEvent(EventPayload(type=name, data={**fields.pop(UNDECLARED, {}), **fields}), size)


def rejection_event(sent: EventDefinition, reason: str) -> StreamedEvent:
    """Return the event that tells the readers of a task that an event sent to it was not accepted.

    Args:
        sent: The event as it was sent.
        reason: What is wrong with it.
    """
    try:
        name, _ = sent.content()
    except InvalidRequestError:
        name = ""
    reason = valid_text(reason)
    data = {"event": name, "reason": reason, "idempotency_key": sent.idempotency_key}
    return StreamedEvent(EventPayload(type=INPUT_REJECTED, data=data), len(reason) + len(name))


class EventRegistry:
    """The event classes that can be sent to a workflow.

    Args:
        workflow: The events that its steps take or return are included, and the answers of people
            (`HumanResponseEvent` and derived classes) that its module, or a module from which it imports
            something, defines or imports by name.
        extra: Further classes, such as other events that appear only in `ctx.wait_for_event`.
    """

    def __init__(self, workflow: Workflow, extra: Iterable[type] = ()) -> None:
        self.classes: dict[str, type[Event]] = {}
        """The classes by qualified name."""
        by_other_name: dict[str, set[type[Event]]] = {}
        named = [cls for cls in classes_in_modules_of(type(workflow)) if issubclass(cls, Event)]
        near = list(questions_and_answers_near(type(workflow)))
        declared = [*workflow.events, *(cls for cls in extra if issubclass(cls, Event))]
        named_answers = _derived(HumanResponseEvent, named)
        self.questions = _names(_derived(InputRequiredEvent, [*declared, *named, *near, InputRequiredEvent]))
        """The names of the classes that ask for an answer when they are streamed."""
        self.answers = _names(_derived(HumanResponseEvent, declared) or named_answers)
        """The names of the classes that answer a question: those of the steps, or else of the module."""
        # Steps, tools and imported functions wait for these; no step declares them.
        known = {cls.__name__ for cls in (*declared, *named_answers)}
        others = [cls for cls in _derived(HumanResponseEvent, near) if cls.__name__ not in known]
        for cls in [*declared, *named_answers, *others, *_OF_EVERYBODY]:
            if issubclass(cls, _NOT_FROM_OUTSIDE):
                continue
            self.classes[qualified_name(cls)] = cls
            # The library writes `module.__name__`, so a nested class has two names.
            for name in (f"{cls.__module__}.{cls.__name__}", cls.__name__):
                by_other_name.setdefault(name, set()).add(cls)
        self._by_name = {name: cls for name, (cls, *more) in by_other_name.items() if not more} | self.classes
        self._ambiguous = {
            name: sorted(map(qualified_name, classes))
            for name, classes in by_other_name.items()
            if name not in self._by_name
        }

    @property
    def names(self) -> list[str]:
        """The qualified names of the classes."""
        return sorted(self.classes)

    def decode(self, definition: EventDefinition) -> Event:
        """Build an event.

        The event's JSON is `{"qualified_name": "module.Class", "value": {...}}`, as the workflow library
        writes it, or `{"type": "Class", "value": {...}}`.

        Raises:
            InvalidRequestError: It has another form, its class is unknown or ambiguous, or a field is wrong.
        """
        name, fields = definition.content()
        # The sender may have the class in another module, such as `__main__` of a script.
        own = name.rpartition(".")[2]
        cls = self._by_name.get(name) or self._by_name.get(own)
        if cls is None:
            if several := self._ambiguous.get(name) or self._ambiguous.get(own):
                raise InvalidRequestError(
                    f"the event class {name!r} is ambiguous: name one of {', '.join(several)}"
                )
            raise InvalidRequestError(
                f"the workflow has no event {name!r}, only {', '.join(self.names) or 'none'}. An event that"
                f" appears only in ctx.wait_for_event must be a HumanResponseEvent, or: {ALLOW_IT}"
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
