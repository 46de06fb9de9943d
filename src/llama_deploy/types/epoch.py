"""Points in time as whole microseconds since 1970-01-01T00:00Z, as rows and cursors have them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def to_microseconds(at: datetime) -> int:
    """Return the microseconds of an aware time. A naive one raises `TypeError`."""
    return (at - EPOCH) // MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """Return the aware time, UTC. One that `datetime` cannot hold raises `OverflowError`."""
    return EPOCH + timedelta(microseconds=microseconds)
