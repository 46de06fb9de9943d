"""Which of several replicas of a server a connection uses."""

from __future__ import annotations

from collections.abc import Sequence


class Replicas:
    """The URLs of a server's replicas, of which one is current. It may be shared between threads.

    Args:
        urls: The base URLs; the first is current.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(urls)
        self._index = 0

    @property
    def current(self) -> str:
        """The URL to use."""
        return self._urls[self._index]

    def __len__(self) -> int:
        return len(self._urls)

    def in_order(self) -> Sequence[str]:
        """Return all URLs in the order in which to try them, the current one first."""
        index = self._index
        return self._urls[index:] + self._urls[:index]

    def report_failure(self, url: str) -> None:
        """Make the next URL current if `url` still is; requests that fail together move on once."""
        index = self._index
        if self._urls[index] == url:
            self._index = (index + 1) % len(self._urls)
