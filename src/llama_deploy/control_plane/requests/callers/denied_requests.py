"""Requests that were refused with 401 or 403, as entries of the audit log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from llama_deploy.control_plane.storage.audit_rows import audit_record
from llama_deploy.errors import LlamaDeployError, OverloadedError
from llama_deploy.state_stores.audit_repository import AuditRecord
from llama_deploy.state_stores.base import StateStore
from llama_deploy.types.audit import Actor, AuditAction, AuditOutcome
from llama_deploy.types.keys import DEFAULT_TENANT
from llama_deploy.web.edge.failure_limit import FailureLimit

logger = logging.getLogger(__name__)

BURST: Final = 20
"""How many requests of one address are recorded at once."""
SECONDS_PER_ENTRY: Final = 60.0
"""After how many seconds a further one is."""
MAX_WAITING: Final = 100
"""How many entries wait to be stored, of all addresses."""
PAUSE_SECONDS: Final = 10.0
"""How long after a transaction the next one may follow. So strangers cause ten entries a second at most."""


class DeniedRequests:
    """Records refused requests, as many as the limits allow, in transactions of their own.

    Args:
        store: Has the audit log.
        clock: Returns the present time, aware, UTC.
        monotonic: Returns seconds that only grow.
    """

    def __init__(
        self,
        store: StateStore,
        clock: Callable[[], datetime],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limit = FailureLimit(monotonic, burst=BURST, seconds=SECONDS_PER_ENTRY)
        self._waiting: list[AuditRecord] = []
        self._omitted = 0
        """How many were not recorded since the last entry."""
        self._news = asyncio.Event()

    def note(self, by: Actor, request: str, *, status: int, tenant: str = DEFAULT_TENANT) -> None:
        """A request was refused.

        Args:
            by: Who has sent it; without a valid key, the subject is empty.
            request: Its method and path, without the query.
            status: That of the answer.
            tenant: In which tenant it was to act.
        """
        if not self._may_record(by.address or ""):
            self._omitted += 1
            return
        omitted, self._omitted = self._omitted, 0
        entry = audit_record(
            by,
            AuditAction.ACCESS,
            request,
            at=self._clock(),
            tenant=tenant,
            outcome=AuditOutcome.DENIED,
            status=status,
            omitted_before=omitted or None,
        )
        self._waiting.append(entry)
        self._news.set()

    def _may_record(self, address: str) -> bool:
        if len(self._waiting) >= MAX_WAITING:
            return False
        try:
            self._limit.reserve(address)
        except OverloadedError:
            return False
        return True

    async def run(self) -> None:
        """Store entries until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.flush()
            await asyncio.sleep(PAUSE_SECONDS)

    async def flush(self) -> None:
        """Store what waits, if the store answers; else it waits on."""
        entries, self._waiting = self._waiting, []
        if not entries:
            return
        try:
            await self._store.transact(lambda tx: tx.audit.append(entries))
        except LlamaDeployError as exc:
            self._waiting = [*entries, *self._waiting]
            self._news.set()
            logger.warning("refused requests cannot be recorded now: %s", exc, extra={"action": "audit"})
