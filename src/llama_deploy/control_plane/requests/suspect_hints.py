"""Which instances are asked to have suspects run alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from llama_deploy.control_plane.decisions.deaths import asked
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
            if each.lease_expires_at > now:
                living[each.service_name].append(each)
        counts: dict[str, int] = {}
        for service_name, instances in living.items():
            chosen = asked(
                [each.instance_id for each in instances if not each.alone],
                suspects=suspects[service_name],
                alone=sum(each.alone for each in instances),
                turn=int(now.timestamp() / self.lease.total_seconds()),
            )
            counts.update(dict.fromkeys(chosen, suspects[service_name]))
        return counts
