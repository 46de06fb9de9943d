"""Which events of a stream a reader wants. No I/O."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from llama_deploy.control_plane.streams.attempt_markers import StreamItem
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import NewAttempt

INTERNAL_TYPES: Final = frozenset({"StepStateChanged", "UnhandledEvent", "WorkflowIdleEvent"})
"""The events by which the workflow library tells what happens inside a run."""
_PASSED_SECONDS: Final = 1.0
"""How often a reader is told how far it has come without events for it."""


class Passed(NamedTuple):
    """The reader has come to the event at `position`, which it does not want."""

    position: int


FilteredItem: TypeAlias = StreamItem | Passed


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Selects events. The terminal event always passes."""

    types: frozenset[str] = frozenset()
    """The names of the classes of events. None: all."""
    internal: bool = False
    """Whether internal events are wanted; those in `types` are, in any case."""

    def admits(self, event: EventRecord) -> bool:
        """Whether the reader wants an event."""
        if event.terminal:
            return True
        if self.types:
            return event.type in self.types
        return self.internal or event.type not in INTERNAL_TYPES

    def items(self, group: Sequence[StreamItem]) -> list[StreamItem]:
        """Return those of consecutive items that the reader wants."""
        return [item for item in group if isinstance(item, NewAttempt) or self.admits(item)]


async def filtered(
    groups: AsyncIterator[list[StreamItem]],
    wanted: EventFilter,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[list[FilteredItem]]:
    """Yield the items that a reader wants, and where it is while there are none.

    Args:
        groups: Consecutive items. An empty group is a keep-alive and passed on.
        wanted: What the reader wants.
        clock: Returns monotonic seconds.
    """
    told_at, passed = clock(), None
    async for group in groups:
        items: list[FilteredItem] = [*wanted.items(group)]
        last = _last_event(group)
        is_idle = not group
        del group  # before the next page is read
        if last is not None:
            passed = None if items and items[-1] is last else last.position
        if passed is not None and (items or is_idle or clock() - told_at >= _PASSED_SECONDS):
            items.append(Passed(passed))
            passed = None
        if items or is_idle:
            told_at = clock()
            yield items
        del items


async def without_internal(groups: AsyncIterator[list[EventRecord]]) -> AsyncIterator[list[EventRecord]]:
    """Yield the events that are not internal. An empty group is a keep-alive."""
    async for group in groups:
        wanted = [event for event in group if event.terminal or event.type not in INTERNAL_TYPES]
        del group  # before the next page is read
        yield wanted
        del wanted


def _last_event(group: Sequence[StreamItem]) -> EventRecord | None:
    return next((item for item in reversed(group) if isinstance(item, EventRecord)), None)
