"""What the client without `await` does differently from the asyncio client: it blocks its thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import sleep
from typing import Any, TypeAlias

from llama_deploy.types import TaskEvent

EventData: TypeAlias = list[dict[str, Any]]
Sleep: TypeAlias = Callable[[float], None]


def data_of(events: Generator[TaskEvent]) -> EventData:
    """Return the data of all events, once the last one has arrived."""
    return [event.data for event in events]


__all__ = ["EventData", "Sleep", "data_of", "sleep"]
