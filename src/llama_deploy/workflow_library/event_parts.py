"""The parts of an event: its declared fields, the undeclared ones, and the result of a stop event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

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
