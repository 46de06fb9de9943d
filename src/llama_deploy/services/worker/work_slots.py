"""The slots of an instance: how many tasks it works on at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.services.worker.shared_process import SharedProcess, this_process

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""How many runs may wait in memory without a slot."""
_MAX_DRAIN_SECONDS: Final = 365 * 86_400.0
"""What an event loop can wait for."""


@dataclass(slots=True, eq=False)
class WorkSlots:
    """Counts the tasks under way. A run that only waits gives up its slot when it is needed.

    It leaves memory for that, unless nothing of it is stored: such a run takes no slot while it waits, and
    continues at once when it has what it waits for, even if all slots are taken.
    """

    limit: int
    """How many tasks the instance may work on."""
    ledger: Ledger
    """An instance with too many unconfirmed outcomes has no free slots."""
    attempts: HeldAttempts[Any]
    """The attempts under way."""
    confirm: Callable[[], None]
    """Asks the control plane to confirm outcomes."""
    service_name: str
    """The service, for the log."""
    can_start: Callable[[], bool] = lambda: True
    """Whether tasks that were taken could start. If not, there are no free slots."""
    process: SharedProcess = field(default_factory=this_process)
    """While a worker needs it for itself, there are no free slots."""
    tasks: BackgroundTasks = field(init=False)
    """What takes the slots."""
    _waiting: set[Attempt] = field(default_factory=set, init=False)
    """Attempts that wait in memory and take no slot."""
    _is_draining: bool = field(default=False, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        """Wake what waits for a slot whenever a task has ended."""
        self.tasks = BackgroundTasks(f"service {self.service_name}", on_done=self.changed)

    @property
    def free(self) -> int:
        """How many more tasks may be taken."""
        if self.ledger.is_full or self.process.is_reserved or not self.can_start():
            return 0
        return self.limit - self.busy

    @property
    def busy(self) -> int:
        """How many tasks are under way, without runs that wait in memory without a slot."""
        return len(self.tasks) - len(self._waiting)

    def on_waiting(self, attempt: Attempt) -> None:
        """A run has begun to wait for something from outside."""
        if attempt.restart_reason is not None and len(self._waiting) < MAX_WAITING:
            self._waiting.add(attempt)
        if self._is_draining:
            self.attempts.park_idle()
        self.changed()

    def on_working(self, attempt: Attempt) -> None:
        """A run has continued, or has ended."""
        self._waiting.discard(attempt)

    def changed(self) -> None:
        """Wake what waits for a slot or for confirmed outcomes, here and in other workers of the process."""
        self.wake()
        self.process.changed()

    def wake(self) -> None:
        """Wake what waits here. Runs that only wait leave memory if one task needs the process for itself."""
        if self.process.is_reserved:
            self.attempts.park_idle()
        self._changed.set()

    async def wait_for_free(self) -> None:
        """Wait until there is a free slot."""
        while self.free <= 0:
            self._changed.clear()
            if self.ledger.is_full:
                self.confirm()
            self.attempts.park_idle()
            await self._changed.wait()

    async def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait until a condition holds that depends on the tasks under way."""
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    async def wait_for_confirmation(self) -> None:
        """Wait until the control plane has confirmed every outcome."""
        while self.ledger.unconfirmed:
            self._changed.clear()
            self.confirm()
            await self._changed.wait()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - tasks that take longer are left running
        """Park the runs that only wait, and wait for the others, but not longer than `timeout` seconds.

        Runs that wait in memory are not waited for: what they wait for may take days.
        """
        if not self.tasks:
            return
        self._is_draining = True
        self.attempts.park_idle()
        logger.info(
            "service %s is draining; running tasks: %d, time to finish: %.0f s",
            self.service_name,
            len(self.tasks),
            timeout,
            extra={"action": "drain", "service_name": self.service_name},
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(timeout, _MAX_DRAIN_SECONDS)):
                while self.busy:
                    self._changed.clear()
                    await self._changed.wait()
