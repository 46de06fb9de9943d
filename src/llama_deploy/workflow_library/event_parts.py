"""The parts of an event: its declared fields, the undeclared ones, and the result of a stop event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from workflows.events import StopEvent

UNDECLARED: Final = "_data"
"""The private attribute with the undeclared fields of the library's events and states."""
_RESULT: Final = "_result"


def parts_of(event: StopEvent) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a stop event by name. The one called `result` may be a declared field."""
    yield from vars(event).items()
    private = event.__pydantic_private__ or {}
    if "result" not in vars(event):
        yield "result", private.get(_RESULT)
    yield from private.get(UNDECLARED, {}).items()


def set_parts(event: StopEvent, parts: Mapping[str, Any]) -> None:
    """Replace parts of a stop event, without validation."""
    for name, value in parts.items():
        private = event.__pydantic_private__ or {}
        if name in vars(event):
            vars(event)[name] = value
        elif name in private.get(UNDECLARED, {}):
            private[UNDECLARED][name] = value
        else:
            private[_RESULT] = value


def parts_of_model(model: BaseModel) -> dict[str, Any]:
    """Return what the JSON of a model contains by its keys, if these are the names of the fields.

    Of the private attributes, these are only those that the library writes. Do not change the returned dict.
    """
    fields, private = vars(model), model.__pydantic_private__
    undeclared = result = None
    if private:
        undeclared, result = private.get(UNDECLARED), private.get(_RESULT)
    extra = model.__pydantic_extra__
    if not (extra or undeclared or result is not None):
        return fields
    parts = {**fields, **(extra or {})}
    if undeclared and not isinstance(model, StopEvent):
        parts[UNDECLARED] = undeclared
    if result is not None:
        parts["result"] = result
    return parts
