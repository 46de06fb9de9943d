"""How much one transaction reads of values that are left out if they are too large together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_READ_BYTES: Final = 8 * 1024 * 1024
"""How many bytes of inputs, states, inboxes and journals one transaction reads for the claims in it."""


@dataclass(slots=True)
class ReadBudget:
    """What may still be read."""

    left: int

    def take(self, size: int) -> bool:
        """Return whether a value may be read."""
        if size > self.left:
            return False
        self.left -= size
        return True
