"""The loop that lets leases, timers and the dispatcher do what is due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.dispatch.dispatcher import Dispatcher
from llama_deploy.control_plane.dispatch.leases import Leases
from llama_deploy.control_plane.dispatch.timers import Timers
from llama_deploy.control_plane.storage.fleets import FleetChange
from llama_deploy.errors import LlamaDeployError

logger = logging.getLogger(__name__)

_RETRY_PAUSE: Final = timedelta(seconds=1)


@dataclass(slots=True, eq=False)
class SweepLoop:
    """Sweeps whenever a lease can expire, or a timer or an attempt can be due."""

    dispatcher: Dispatcher
    """Swept first."""
    timers: Timers
    """Swept second."""
    leases: Leases
    """Swept last."""
    clock: Callable[[], datetime]
    """Returns the present time, aware, UTC."""
    lease: timedelta
    """How long an instance may be silent."""
    max_pause: timedelta
    """The longest pause between two sweeps."""
    _living: AbstractSet[str] | None = field(default=None, init=False)
    """The services that had a living instance at the last sweep. None: there was no sweep."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _fleets: list[FleetChange] = field(default_factory=list, init=False)
    """The instances that have joined or left since the last sweep."""
    _until: datetime | None = field(default=None, init=False)
    """When the next sweep begins by itself; None while one is under way."""

    def wake(self, due: datetime | None = None) -> None:
        """Something becomes due, at `due` if that is known: sweep in time."""
        if due is None or self._until is None or due < self._until:
            self._woken.set()

    def note_fleets(self, changes: Collection[FleetChange]) -> None:
        """Instances have joined or left: what was stranded may fit now, what was sent to one may be lost."""
        self._fleets.extend(changes)
        self._woken.set()

    def note_free(self, service_names: AbstractSet[str]) -> None:
        """Instances of services have reported free slots."""
        if self.dispatcher.full and not self.dispatcher.full.isdisjoint(service_names):
            self._woken.set()

    def note_missed_heartbeats(self) -> None:
        """Heartbeats may have been lost, perhaps everywhere: renew all leases before any of them expires."""
        self.leases.note_missed_heartbeats()
        self._woken.set()

    async def run(self) -> None:
        """Sweep until cancelled. After an error of the store the sweep is repeated."""
        while True:
            self._woken.clear()  # before the sweep reads, so that nothing new is missed between
            self._until = None
            try:
                pause = await self.sweep()
            except LlamaDeployError as exc:
                logger.warning("a sweep failed; retrying: %s", exc, extra={"action": "sweep"})
                self.leases.note_missed_heartbeats()
                pause = min(self.lease, _RETRY_PAUSE)
            await self._sleep(pause)

    async def sweep(self) -> timedelta:
        """Do what is due once, and return how long nothing else can be."""
        if self._fleets:
            changes = list(self._fleets)
            await self.dispatcher.send_elsewhere(changes)
            del self._fleets[: len(changes)]
        dues = [await self.dispatcher.sweep(), await self.timers.sweep()]
        leases = await self.leases.sweep()
        await self._resume(leases.living_services)
        for service_name in self.dispatcher.full & leases.free_services:
            await self.dispatcher.resume_some(service_name)
        await self.dispatcher.expedite(leases.silent_services)
        if leases.set_back:
            await self.dispatcher.bring_forward(leases.set_back)
            return timedelta()
        now = self.clock()
        pauses = [due - now for due in (*dues, leases.next_at) if due is not None]
        return max(min([*pauses, self.max_pause]), timedelta())

    async def _resume(self, living: AbstractSet[str]) -> None:
        """Resume what has waited for the first instance of a service, here or at another control plane."""
        arrived = set[str]() if self._living is None else living - self._living
        self._living = living
        for service_name in arrived | (self.dispatcher.held & living):
            await self.dispatcher.resume(service_name)

    async def _sleep(self, pause: timedelta) -> None:
        self._until = self.clock() + pause
        with suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self._woken.wait()
