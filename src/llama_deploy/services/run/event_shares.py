"""How much of its events each attempt of an instance may keep until they are published and stored."""

from __future__ import annotations

from typing import Final

MAX_ALL_CHARACTERS: Final = 64 * 1024 * 1024
"""How much text of events all attempts of an instance keep together, and one event more of each."""
MAX_SHARE: Final = 8 * 1024 * 1024
"""How much text one attempt keeps before a step that streams another event has to wait."""
MIN_SHARE: Final = 256 * 1024
"""An instance with more attempts than that keeps more: events have to be sent in batches."""


def event_share(attempts: int) -> int:
    """Return how many characters of events each of so many attempts may keep."""
    return max(MIN_SHARE, min(MAX_SHARE, MAX_ALL_CHARACTERS // attempts))
