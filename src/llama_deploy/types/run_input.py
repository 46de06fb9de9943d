"""The forms in which the arguments of a run are sent."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

START_EVENT: Final = "start_event"


def start_fields(arguments: Mapping[str, Any], declared: Container[str]) -> dict[str, Any]:
    """Return the fields of the start event from `{field: value}` or `{"start_event": {field: value}}`.

    Args:
        arguments: The arguments of the run.
        declared: The names of the start event's declared fields.
    """
    inner = arguments.get(START_EVENT)
    if START_EVENT in declared or len(arguments) != 1 or not isinstance(inner, dict):
        return dict(arguments)
    # The library's serializer wraps an event like this. Its class is known; the name is not used.
    if inner.get("__is_pydantic") and isinstance(inner.get("value"), dict):
        return dict(inner["value"])
    return inner
