"""The slots of an instance: how many tasks it works on at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.ledger import Ledger

logger = logging.getLogger(__name__)


class WorkSlots:
    """Counts the tasks under way. A run that only waits gives up its slot when it is needed.

    Args:
        limit: How many tasks the instance may work on.
        ledger: An instance with too many unconfirmed outcomes has no free slots.
        attempts: The attempts under way.
        confirm: Asks the control plane to confirm outcomes.
        service_name: The service, for the log.
    """

    def __init__(
        self,
        limit: int,
        *,
        ledger: Ledger,
        attempts: HeldAttempts,
        confirm: Callable[[], None],
        service_name: str,
    ) -> None:
        self._limit = limit
        self._ledger = ledger
        self._attempts = attempts
        self._confirm = confirm
        self._service_name = service_name
        self._is_draining = False
        self._changed = asyncio.Event()
        self.tasks = BackgroundTasks(f"service {service_name}", on_done=self.changed)
        """What takes the slots."""

    @property
    def free(self) -> int:
        """How many more tasks may be taken."""
        return 0 if self._ledger.is_full else self._limit - len(self.tasks)

    def on_waiting(self) -> None:
        """A run has begun to wait for something from outside."""
        if self._is_draining:
            self._attempts.park_idle()
        self.changed()

    def changed(self) -> None:
        """Wake what waits for a slot or for confirmed outcomes."""
        self._changed.set()

    async def wait_for_free(self) -> None:
        """Wait until there is a free slot."""
        while self.free <= 0:
            self._changed.clear()
            if self._ledger.is_full:
                self._confirm()
            self._attempts.park_idle()
            await self._changed.wait()

    async def wait_for_confirmation(self) -> None:
        """Wait until the control plane has confirmed every outcome."""
        while self._ledger.unconfirmed:
            self._changed.clear()
            self._confirm()
            await self._changed.wait()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - tasks that take longer are left running
        """Park the runs that only wait, and wait for the others, but not longer than `timeout` seconds."""
        if not self.tasks:
            return
        self._is_draining = True
        self._attempts.park_idle()
        logger.info(
            "service %s is draining; running tasks: %d, time to finish: %.0f s",
            self._service_name,
            len(self.tasks),
            timeout,
            extra={"action": "drain", "service_name": self._service_name},
        )
        await asyncio.wait(set(self.tasks), timeout=timeout)
