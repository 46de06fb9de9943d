"""How much has been added to an event stream."""

from __future__ import annotations

from typing import Final, NamedTuple

SHORT_STREAM: Final = 16
"""A stream of so many events is never packed, and nothing is noted of it."""


class Growth(NamedTuple):
    """What has been added to a stream."""

    events: int = 0
    size: int = 0
    """The length of their data."""

    def plus(self, other: Growth) -> Growth:
        """Return both together."""
        return Growth(self.events + other.events, self.size + other.size)

    def reaches(self, limit: Growth) -> bool:
        """Whether it has as many events as the limit, or as much data."""
        return self.events >= limit.events or self.size >= limit.size
