"""What the headers of a record say. No I/O, no clock.

A record is a message as it was published, a copy of one, or a note about a copy. A copy is a message that
comes back: it is for one group. A note follows it in the same partition: it is written by a member
that still works on the message although the partition it came from has moved to another member.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DONE: Final = math.inf
"""When a settled message is due."""

_GROUP: Final = "llama_deploy.group"
_ATTEMPTS: Final = "llama_deploy.attempts"
_DUE: Final = "llama_deploy.due"
_ID: Final = "llama_deploy.id"


@dataclass(frozen=True, slots=True)
class Envelope:
    """The headers of a record. Those of a message as it was published say nothing."""

    group: str = ""
    """The group that it is for. Empty: all."""
    attempts: int = 0
    """How often the message was delivered to the group."""
    due: float = 0.0
    """Not to be delivered before, in seconds since the epoch."""
    id: str = ""
    """Identifies a copy whose message is still in use, for the notes about it. Empty: it is not in use."""

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of a record."""
        values = ((_GROUP, self.group), (_ATTEMPTS, self.attempts), (_DUE, self.due), (_ID, self.id))
        return [(name, str(value).encode()) for name, value in values if value]

    @classmethod
    def read(cls, headers: Iterable[tuple[str, bytes]]) -> Envelope:
        """Read the headers of a record; unknown ones and invalid values are ignored."""
        found = {name: (value or b"").decode(errors="replace") for name, value in headers}
        try:
            attempts, due = int(found.get(_ATTEMPTS, 0)), float(found.get(_DUE, 0.0))
        except ValueError:
            attempts, due = 0, 0.0
        return cls(found.get(_GROUP, ""), attempts, 0.0 if math.isnan(due) else due, found.get(_ID, ""))
