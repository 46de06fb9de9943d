"""Where a run was when a step began, so that a fork can go back to it.

A point counts the writes of the journal: the entries and the snapshots that were written before. The mark
identifies the state that was stored then. Instances make points, and the control plane goes back to them.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple, Self

NO_MARK: Final = ""
"""The mark of a run whose state is not stored, because no step has changed it."""
_MARK_BYTES: Final = 6
_MAX_DIGITS: Final = 16


class RunPoint(NamedTuple):
    """A point in the journal of a run, between two writes."""

    entries: int
    """How many entries were written before, over all attempts."""
    snapshots: int = 0
    """How many snapshots were."""
    state: str = NO_MARK
    """The mark of the state that was stored then."""

    @property
    def writes_before(self) -> int:
        """How many entries and snapshots were written before. It orders the points of a run."""
        return self.entries + self.snapshots

    @property
    def is_beginning(self) -> bool:
        """Whether nothing was written."""
        return self.writes_before == 0

    def __str__(self) -> str:
        """Return the point as text: the numbers, and the mark if there is one."""
        text = f"{self.entries}.{self.snapshots}" if self.snapshots or self.state else str(self.entries)
        return f"{text}.{self.state}" if self.state else text

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Return the point of a text. None: it is not one."""
        entries, *rest = (text or "").split(".", 2)
        snapshots = rest[0] if rest else "0"
        if not (_is_count(entries) and _is_count(snapshots)):
            return None
        return cls(int(entries), int(snapshots), rest[1] if len(rest) > 1 else NO_MARK)


def _is_count(text: str) -> bool:
    return len(text) <= _MAX_DIGITS and text.isascii() and text.isdecimal()


def mark_of(state: str | None) -> str:
    """Return the mark of a stored state."""
    if state is None:
        return NO_MARK
    return blake2b(state.encode(errors="surrogatepass"), digest_size=_MARK_BYTES).hexdigest()
