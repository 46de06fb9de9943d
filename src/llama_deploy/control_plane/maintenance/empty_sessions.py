"""Deletes sessions that have no tasks and were not written to for long, if the settings say so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.state_stores.base import StateStore

_AGAIN: Final = timedelta(days=1)
_PAGE: Final = 500
_TOGETHER: Final = 20
"""How many sessions one transaction deletes: the state of each may take megabytes."""
_PAUSE: Final = 0.05


@dataclass(slots=True, eq=False)
class EmptySessions:
    """Goes through all sessions once a day."""

    store: StateStore
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    kept_for: timedelta | None
    """How long a session is kept after the last write of its state. None: nothing is deleted here."""
    _done_at: datetime | None = field(default=None, init=False)

    async def sweep(self) -> int:
        """Delete sessions if it is time to, and return how many.

        Raises:
            UnavailableError: The store does not answer.
        """
        now = self.clock()
        if self.kept_for is None or (self._done_at is not None and now - self._done_at < _AGAIN):
            return 0
        count, after, cutoff = 0, "", now - self.kept_for
        while page := await self._page(after):
            old = [session_id for session_id, written_at in page if written_at < cutoff]
            for start in range(0, len(old), _TOGETHER):
                count += await self._delete(old[start : start + _TOGETHER])
                await asyncio.sleep(_PAUSE)
            after = page[-1][0]
            await asyncio.sleep(0)
        self._done_at = now
        return count

    async def _page(self, after: str) -> list[tuple[str, datetime]]:
        return await self.store.read(lambda tx: tx.retention.session_page(after=after, limit=_PAGE))

    async def _delete(self, session_ids: list[str]) -> int:
        return len(await self.store.transact(lambda tx: tx.retention.delete_empty_sessions(session_ids)))
