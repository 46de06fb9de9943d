"""Which deliveries a member still holds.

Some brokers let a former holder extend or return a message that another member has by now. A member
therefore settles such a delivery only while its visibility timeout runs. It cannot tell how long a message
was on the way while the process or the connection stood still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_MARGIN_SHARE: Final = 0.1
_MAX_MARGIN_SECONDS: Final = 1.0
"""A hold ends before the visibility timeout by this share of it, at most so many seconds: a settlement has to
reach the broker."""


def held_until(seconds: float, *, since: float) -> float:
    """Return when a member stops holding a delivery whose visibility timeout is `seconds` (loop's clock)."""
    return since + seconds - min(seconds * _MARGIN_SHARE, _MAX_MARGIN_SECONDS)


class HeldDeliveries(Generic[K]):
    """The unsettled deliveries of a member, each until shortly before others may get its message."""

    def __init__(self) -> None:
        self._until: dict[K, float] = {}

    def add(self, key: K, until: float) -> None:
        """Hold a delivery until a time of the loop's clock."""
        self._until[key] = until

    def extend_when(self, sent: asyncio.Future[bool], key: K, until: float) -> None:
        """Hold a delivery longer as soon as the broker has extended it, if it is not settled by then."""

        def extend(sent: asyncio.Future[bool]) -> None:
            if not sent.cancelled() and sent.result() and key in self._until:
                self._until[key] = until

        sent.add_done_callback(extend)

    def until(self, key: K) -> float:
        """Return until when a delivery is held, by the loop's clock; 0 if it is not."""
        until = self._until.get(key, 0.0)
        return until if until > asyncio.get_running_loop().time() else 0.0

    def remove(self, key: K) -> None:
        """Stop holding a delivery. Idempotent."""
        self._until.pop(key, None)

    def clear(self) -> dict[K, float]:
        """Stop holding all deliveries; return those that were held, and until when."""
        self.drop_expired()
        held, self._until = self._until, {}
        return held

    def drop_expired(self) -> None:
        """Forget the deliveries whose time is over."""
        now = asyncio.get_running_loop().time()
        self._until = {key: until for key, until in self._until.items() if until > now}
