"""Which deliveries are still ours.

Some brokers let whoever had a message put it off or give it back when another member has it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SHARE: Final = 0.9
"""Of the time that the broker keeps a message from others; the rest is for the way."""


class Holdings(Generic[K]):
    """Unsettled deliveries, until shortly before the broker may give their messages to others."""

    def __init__(self) -> None:
        self._until: dict[K, float] = {}

    def __contains__(self, key: K) -> bool:
        return self._until.get(key, 0.0) > asyncio.get_running_loop().time()

    def keep(self, key: K, seconds: float) -> None:
        """Note a delivery that the broker keeps from others for so long from now."""
        self._until[key] = asyncio.get_running_loop().time() + seconds * _SHARE

    def let_go(self, key: K) -> bool:
        """Forget a delivery; return whether it was still ours. Idempotent."""
        ours = key in self
        self._until.pop(key, None)
        return ours

    def let_all_go(self) -> list[K]:
        """Forget all deliveries; return those that were still ours."""
        self.forget_the_late()
        ours = list(self._until)
        self._until.clear()
        return ours

    def forget_the_late(self) -> None:
        """Forget the deliveries that are ours no more."""
        now = asyncio.get_running_loop().time()
        self._until = {key: until for key, until in self._until.items() if until > now}
