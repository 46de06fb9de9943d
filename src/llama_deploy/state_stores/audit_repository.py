"""The audit log in a state store. See `repositories` for what holds of all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple


class AuditRecord(NamedTuple):
    """One entry. It never changes."""

    at: datetime
    action: str
    target: str
    """An id as users see it, not a key; or a name."""
    tenant: str
    """To whom the target belongs."""
    outcome: str
    subject: str
    """Who has done it."""
    home: str
    """The tenant of whoever has done it."""
    key_id: str | None = None
    acting_for: str | None = None
    address: str | None = None
    details: str | None = None
    """JSON object. None: an empty one."""


class AuditPlace(NamedTuple):
    """Where an entry stands in the log."""

    at: datetime
    position: int


class AuditConditions(NamedTuple):
    """Which entries are read; each of these has an index."""

    tenant: str | None = None
    target: str | None = None
    subject: str | None = None


class AuditRepository(ABC):
    """Entries are added, read, and removed when they are old. There is no way to change one."""

    @abstractmethod
    def append(self, entries: Sequence[AuditRecord]) -> None:
        """Store entries."""

    @abstractmethod
    def page(
        self, conditions: AuditConditions, *, since: datetime, before: AuditPlace, limit: int
    ) -> list[tuple[AuditPlace, AuditRecord]]:
        """Return entries with their places, the newest first.

        Args:
            conditions: All must be fulfilled.
            since: None that is older.
            before: Only those that stand before this place, in time.
            limit: The most entries to return.
        """

    @abstractmethod
    def remove_old(self, *, before: datetime, limit: int) -> int:
        """Remove the oldest entries, if they are older than this, and return how many were removed."""
