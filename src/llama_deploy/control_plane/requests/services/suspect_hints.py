"""Which instances are asked to have suspects run alone: those that fit one that waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from llama_deploy.control_plane.decisions.deaths import asked
from llama_deploy.control_plane.storage.fleets import demand_of, load_fleets
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord
from llama_deploy.types.instance_protocol import BEATS_PER_LEASE

_READS_PER_BEAT = 4
"""How often the store is read between two heartbeats of an instance, however many instances there are."""


@dataclass(slots=True)
class SuspectHints:
    """Answers heartbeats from what it has read lately, so that they need no query of their own."""

    store: StateStore
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""
    lease: timedelta
    _counts: Mapping[str, int] = field(default_factory=dict, init=False)
    """How many suspects wait, by the instances that are asked."""
    _read_at: datetime | None = field(default=None, init=False)

    async def of(self, instance_id: str) -> int:
        """Return how many suspects wait that an instance is asked to run alone. 0: it is not asked.

        Raises:
            UnavailableError: The store does not answer.
        """
        now = self.clock()
        pause = self.lease / (BEATS_PER_LEASE * _READS_PER_BEAT)
        if self._read_at is None or abs(now - self._read_at) >= pause:
            self._read_at = now  # others answer from the last reading meanwhile
            self._counts = await self.store.read(self._read)
        return self._counts.get(instance_id, 0)

    def forget(self) -> None:
        """Read the store again with the next heartbeat."""
        self._read_at = None

    def _read(self, tx: StoreTransaction) -> Mapping[str, int]:
        suspects = tx.tasks.suspects()
        if not suspects:
            return {}
        now = self.clock()
        living: defaultdict[str, list[InstanceRecord]] = defaultdict(list)
        for each in tx.instances.load(service_names=list(suspects)):
            # One that drains takes nothing any more.
            if each.lease_expires_at > now and (each.alone or each.slots != 0):
                living[each.service_name].append(each)
        fitting = _by_fit(tx, suspects, living, now)
        counts: dict[str, int] = {}
        for service_name, instances in living.items():
            counts |= asked(
                {each.instance_id: each.version for each in instances if not each.alone},
                suspects=fitting[service_name],
                alone=[each.version for each in instances if each.alone],
                turn=int(now.timestamp() / self.lease.total_seconds()),
            )
        return counts


def _by_fit(
    tx: StoreTransaction,
    suspects: Mapping[str, int],
    living: Mapping[str, Collection[InstanceRecord]],
    now: datetime,
) -> Mapping[str, Mapping[frozenset[str | None], int]]:
    """Return how many suspects wait, by their service and the versions of living instances that fit.

    Args:
        tx: Where they are read.
        suspects: How many there are, by their service.
        living: The living instances, by their service.
        now: The present time.
    """
    versions = {name: frozenset(each.version for each in instances) for name, instances in living.items()}
    # With one version, what it has claimed before need not be compared.
    only = [
        (name, version) for name, found in versions.items() if len(found) == 1 for version in found if version
    ]
    groups = tx.runs.suspects(list(versions), living=only)
    fleets = load_fleets(tx, {group.service_name for group in groups}, now=now) if groups else {}
    counts: defaultdict[str, Counter[frozenset[str | None]]] = defaultdict(Counter)
    for group in groups:
        name, demand = group.service_name, demand_of(group)
        fitting = frozenset(each for each in versions[name] if demand.fault(each, fleets[name]) is None)
        counts[name][fitting] += group.task_count
    for name, found in versions.items():
        # The others fit all versions that live, or are too many to compare; their claims are checked.
        counts[name][found] += suspects[name] - counts[name].total()
    return counts
