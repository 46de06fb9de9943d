"""How many connections a server has at the same time."""

from __future__ import annotations

import logging
import resource
from typing import Final

logger = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS: Final = 10_000
_OTHER_DESCRIPTORS: Final = 64
"""How many file descriptors are kept for the store, the queue and the log of the process, at least."""
_SHARE_OF_OTHERS: Final = 8
"""An eighth of all descriptors is kept for them, if that is more."""
_RECOVERED: Final = 0.9
"""Below which part of the connections that it had the server has recovered."""


class ConnectionLimit:
    """Refuses connections that are too many, and tells once when that begins and when it is over.

    Args:
        max_connections: The limit. It is lower if the process may not open so many files.
    """

    def __init__(self, max_connections: int) -> None:
        self._limit = max_connections
        self._full_at: int | None = None
        """How many connections there were when one was refused. None: none was, or the server has recovered.
        """

    def allows(self, count: int, descriptor: int) -> bool:
        """Return whether the server may keep a new connection.

        Args:
            count: How many connections it has, with the new one.
            descriptor: The file descriptor of the new one. The system always takes the lowest that is free,
                so it says how many are used in the process.
        """
        last = _last_descriptor()
        if count <= self._limit and (last is None or descriptor <= last):
            return True
        if self._full_at is None:
            self._full_at = count - 1
            setting = (
                "max_connections"
                if count > self._limit
                else "the limit of open files of the process (ulimit -n)"
            )
            logger.warning(
                "%d connections are open, and further ones are refused until some are closed; raise %s",
                self._full_at,
                setting,
                extra={"action": "connections_refused"},
            )
        return False

    def note(self, count: int) -> None:
        """A connection was closed; `count` others are open."""
        if self._full_at is not None and count <= self._full_at * _RECOVERED:
            self._full_at = None
            logger.info("connections are accepted again", extra={"action": "connections_accepted"})


def _last_descriptor() -> int | None:
    """Return the highest file descriptor that a connection may have, None if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    return soft - max(_OTHER_DESCRIPTORS, soft // _SHARE_OF_OTHERS)
