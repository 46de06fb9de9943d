"""Where in a stream a reader is told that a new attempt has taken over. No I/O.

A marker is not stored as an event and has no number. It stands before the event at its position, and follows
from what is stored of the task and the reader's cursor alone: so every reader is told the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llama_deploy.control_plane.decisions.takeovers import takeovers_of
from llama_deploy.state_stores.records import EventRecord, TaskRecord
from llama_deploy.types import NewAttempt

StreamItem: TypeAlias = EventRecord | NewAttempt


@dataclass(slots=True)
class AttemptMarkers:
    """The markers of one reader that are still to come.

    Args:
        after: The position of the last event that the reader knows; -1 for none.
        wanted: Whether the reader wants markers. If not, there are none.
    """

    after: int
    wanted: bool = True
    _told: int = 0
    """The last attempt of which the reader was told, or need not be told."""
    _known: int = 0
    """The attempt of the task when it was read last."""
    _pending: list[NewAttempt] = field(default_factory=list)

    def learn(self, task: TaskRecord) -> None:
        """Take what is stored of the task now."""
        self._known = task.attempt
        self._pending = [
            new for new in takeovers_of(task) if new.attempt > self._told and new.position > self.after
        ]

    def after_learning(self, task: TaskRecord, cursor: int) -> list[NewAttempt]:
        """Take what is stored of the task now, and return the markers that are due at `cursor`."""
        if not self.wanted:
            return []
        self.learn(task)
        return self.due(cursor)

    def must_learn(self, events: Sequence[EventRecord]) -> bool:
        """Whether a newer attempt has written one of the events than was known."""
        return self.wanted and any((event.attempt or 0) > self._known for event in events)

    def due(self, cursor: int) -> list[NewAttempt]:
        """Return, once, the markers up to the position after the event at `cursor`."""
        due = [new for new in self._pending if new.position <= cursor + 1]
        if due:
            self._told = due[-1].attempt
            self._pending = self._pending[len(due) :]
        return due

    def placed(self, events: Sequence[EventRecord]) -> list[StreamItem]:
        """Return events with the markers that stand before them."""
        if not self._pending:
            return list(events)
        items: list[StreamItem] = []
        for event in events:
            items += self.due(event.position - 1)
            items.append(event)
        return items
