"""Which deliveries are still ours.

Some brokers let whoever had a message put it off or give it back when another member has it. So a member
settles such a delivery only while it can tell that it is its own. How long a message lay on the way while the
process or the connection stood still, it cannot tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SHARE: Final = 0.1
_LONGEST: Final = 1.0
"""Of the time that the broker keeps a message from others, this share is for the way, but no more seconds."""


def ours_until(seconds: float, *, since: float) -> float:
    """Return until when, by the loop's clock, a delivery is ours that is kept from others for so long."""
    return since + seconds - min(seconds * _SHARE, _LONGEST)


class Holdings(Generic[K]):
    """Unsettled deliveries, until shortly before the broker may give their messages to others."""

    def __init__(self) -> None:
        self._until: dict[K, float] = {}

    def keep(self, key: K, until: float) -> None:
        """Note until when a delivery is ours."""
        self._until[key] = until

    def keep_if(self, extended: asyncio.Future[bool], key: K, until: float) -> None:
        """Note until when a delivery is ours as soon as it is extended, if it is not settled by then."""

        def keep(extended: asyncio.Future[bool]) -> None:
            if not extended.cancelled() and extended.result() and key in self._until:
                self._until[key] = until

        extended.add_done_callback(keep)

    def until(self, key: K) -> float:
        """Return until when a delivery is ours, by the loop's clock; 0 if it is not."""
        until = self._until.get(key, 0.0)
        return until if until > asyncio.get_running_loop().time() else 0.0

    def let_go(self, key: K) -> float:
        """Forget a delivery; return the same as `until`. Idempotent."""
        until = self.until(key)
        self._until.pop(key, None)
        return until

    def let_all_go(self) -> dict[K, float]:
        """Forget all deliveries; return those that are still ours, and until when."""
        self.forget_the_late()
        ours, self._until = self._until, {}
        return ours

    def forget_the_late(self) -> None:
        """Forget the deliveries that are ours no more."""
        now = asyncio.get_running_loop().time()
        self._until = {key: until for key, until in self._until.items() if until > now}
