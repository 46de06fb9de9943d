"""Leases of instances: renewing them after an outage, and moving on the tasks of instances that are gone."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from llama_deploy.control_plane.decisions.deaths import judged_at
from llama_deploy.control_plane.decisions.dispatch_rules import has_free_slot
from llama_deploy.control_plane.dispatch.clock_watch import ClockWatch
from llama_deploy.control_plane.dispatch.pause_watch import PauseWatch
from llama_deploy.control_plane.storage.dead_processes import MovedTask, move_on
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord

logger = logging.getLogger(__name__)

_FORGET_INSTANCE_SECONDS: Final = 60.0
"""How long an instance whose lease has expired stays listed."""
_GRACE_SECONDS: Final = 0.25
"""How long heartbeats in transit may take to be stored; with a short lease an eighth of it."""
_MAX_GRACE_PERIODS: Final = 8
"""How often that time is granted again because this process was slow in it."""


@dataclass(frozen=True, slots=True)
class LeaseSweep:
    """What a sweep of the leases has found."""

    silent_services: AbstractSet[str]
    """Services with an instance whose lease had expired when the sweep began."""
    living_services: AbstractSet[str]
    """Services with an instance that is alive, and does not only run suspects."""
    free_services: AbstractSet[str]
    """Services with one that had a free slot at its last heartbeat."""
    next_at: datetime | None
    """When the next lease expires. None: there is none."""
    set_back: timedelta = timedelta()
    """How far the clock was set back since the last sweep."""


class Leases:
    """Expires leases, but only if no heartbeat can have been lost.

    Args:
        store: Where instances are read.
        writer: How they and their tasks are changed.
        watch: Notices that the clock was set.
        pauses: Knows when no heartbeat could be received. That time counts for no lease.
        lease_seconds: How long an instance may be silent.
    """

    def __init__(
        self,
        *,
        store: StateStore,
        writer: Writer,
        watch: ClockWatch,
        pauses: PauseWatch,
        lease_seconds: float,
    ) -> None:
        self._store = store
        self._writer = writer
        self._watch = watch
        self._pauses = pauses
        self._clock = watch.clock
        self._set_back = timedelta()
        self._lease = timedelta(seconds=lease_seconds)
        self._heartbeats_missed = False
        self._expired: set[tuple[str, datetime]] = set()
        """The leases that the last sweep has found expired: instances, and when their leases ended."""

    def note_missed_heartbeats(self) -> None:
        """Heartbeats may have been lost: the next sweep renews all leases before any of them expires."""
        self._heartbeats_missed = True

    def may_have_missed_heartbeats(self) -> bool:
        """Whether heartbeats may have been lost lately, so that an expired lease proves nothing."""
        failed_at = self._writer.failed_at
        store_failed = failed_at is not None and self._clock() - failed_at <= self._lease
        return self._heartbeats_missed or store_failed

    async def renew_all(self) -> None:
        """Give every instance a fresh lease, because its heartbeats could not be received.

        A lease that is longer was granted before the clock was set back, and is cut.
        """
        until = self._clock() + self._lease

        def renew(tx: StoreTransaction) -> None:
            found = tx.instances.load()
            tx.instances.put(
                [item._replace(lease_expires_at=until) for item in found if item.lease_expires_at != until]
            )

        if await self._store.read(lambda tx: tx.instances.load()):
            # Not with the writer's transactions, which may have locked sessions before the instances.
            await self._store.transact(renew)

    async def sweep(self) -> LeaseSweep:
        """Move on the tasks of instances whose leases have expired."""
        self._look_at_clock()
        if self.may_have_missed_heartbeats():
            self._heartbeats_missed = False
            await self.renew_all()
        instances = await self._store.read(lambda tx: tx.instances.load())
        now = self._clock()
        ends = {item.instance_id: self._end_of(item, now) for item in instances}
        others = _others_of(instances)
        judged = {
            each: judged_at(end, [ends[other] for other in others[each]], patience=self._lease / 2)
            for each, end in ends.items()
        }
        over = [item for item in instances if judged[item.instance_id] <= now]
        await self._expire(over, others)
        if len(self._expired) < len(over):
            next_at: datetime | None = now
        else:
            next_at = min((at for at in (*ends.values(), *judged.values()) if at > now), default=None)
        set_back, self._set_back = self._set_back, timedelta()
        silent = {item.service_name for item in instances if ends[item.instance_id] <= now}
        alive = [item for item in instances if ends[item.instance_id] > now]
        living = {item.service_name for item in alive if not item.only_suspects}
        free = {item.service_name for item in alive if has_free_slot(item)}
        return LeaseSweep(silent, living, free, next_at, set_back)

    def _end_of(self, instance: InstanceRecord, now: datetime) -> datetime:
        """Return when a lease ends: as much later as this process was paused since it was granted."""
        stored = instance.lease_expires_at
        if stored > now:
            return stored
        return stored + timedelta(
            seconds=self._pauses.paused_within((now - stored + self._lease).total_seconds())
        )

    def _look_at_clock(self) -> None:
        """If the clock was set, no lease means anything."""
        jumped = self._watch.jump()
        if not jumped:
            return
        logger.warning(
            "the clock of this machine was set %s by %.0f s; leases are renewed",
            "back" if jumped < timedelta() else "forward",
            abs(jumped).total_seconds(),
            extra={"action": "clock_set"},
        )
        self._heartbeats_missed = True
        self._set_back += max(-jumped, timedelta())

    async def _expire(self, silent: Sequence[InstanceRecord], others: Mapping[str, AbstractSet[str]]) -> None:
        """Move on the tasks of those instances that are still silent when all heartbeats are stored.

        Whoever was heard since then has a new lease, and keeps its tasks, however late this transaction is.
        """
        leases = set(map(_lease_of, silent))
        if not leases <= self._expired:
            await self._wait_for_heartbeats()
        before, self._expired = self._expired, set()
        if not silent:
            return
        self._look_at_clock()
        if self.may_have_missed_heartbeats():
            self._heartbeats_missed = True
            return

        now = self._clock()
        leases = {_lease_of(instance) for instance in silent if self._end_of(instance, now) <= now}
        instance_ids = {instance_id for instance_id, _ in leases}
        reads = Reads(instances=instance_ids.union(*(others[each] for each in instance_ids)))

        def run(unit: Unit) -> tuple[set[tuple[str, datetime]], list[MovedTask]]:
            found = [item for each in instance_ids if (item := unit.instances.find(each)) is not None]
            expired = {item.instance_id: item for item in found if _lease_of(item) in leases}
            moved: list[MovedTask] = []
            for each in {frozenset({each, *others[each]}) for each in expired}:
                dead = [item for instance_id, item in expired.items() if instance_id in each]
                moved += move_on(unit, dead, alive=each - expired.keys())
            unit.lose_instances([item for item in expired.values() if _lease_of(item) not in before])
            unit.remove_instances([each for each, item in expired.items() if _is_forgotten(item, unit.now)])
            return set(map(_lease_of, expired.values())), moved

        self._expired, lost = await self._writer.write(Command(run, reads))
        for moved in lost:
            moved.log("which was silent for longer than its lease", action="lease_ended")

    async def _wait_for_heartbeats(self) -> None:
        """Let heartbeats in transit be stored.

        This process, or the whole machine, may have been paused until just now, and may be again.
        """
        loop = asyncio.get_running_loop()
        seconds = min(_GRACE_SECONDS, self._lease.total_seconds() / 8)
        for _ in range(_MAX_GRACE_PERIODS):
            begun = loop.time()
            await asyncio.sleep(seconds)
            await self._writer.catch_up()
            if loop.time() - begun < 2 * seconds:
                return


def _lease_of(instance: InstanceRecord) -> tuple[str, datetime]:
    return instance.instance_id, instance.lease_expires_at


def _others_of(instances: Iterable[InstanceRecord]) -> dict[str, AbstractSet[str]]:
    """Return, by instance, the other instances of its process."""
    found = list(instances)
    processes: defaultdict[str, set[str]] = defaultdict(set)
    for each in found:
        if each.process_id is not None:
            processes[each.process_id].add(each.instance_id)
    return {
        each.instance_id: processes.get(each.process_id or "", set()) - {each.instance_id} for each in found
    }


def _is_forgotten(instance: InstanceRecord, now: datetime) -> bool:
    return (now - instance.lease_expires_at).total_seconds() > _FORGET_INSTANCE_SECONDS
