"""How much work waits for each service, and what its instances can take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from llama_deploy.control_plane.requests.services.service_requests import stranded_tasks
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.types import TaskStatus
from llama_deploy.types.services import ServiceBacklog

MAX_SERVICES: Final = 200
"""How many services have gauges."""
_USUAL_SLOTS: Final = 1
"""What an instance counts for that does not tell its slots."""


@dataclass(frozen=True, slots=True)
class StoreLoad:
    """What the store holds, by service."""

    tasks: Mapping[tuple[str, TaskStatus], int]
    backlogs: Mapping[str, ServiceBacklog]
    instances: Mapping[str, int]
    """How many are alive."""
    suspects: Mapping[str, int]
    """How many suspects wait."""


@dataclass(frozen=True, slots=True)
class Backlogs:
    """Reads the load of services from the store."""

    store: StateStore
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""

    async def of(self, service_name: str) -> ServiceBacklog:
        """Return the backlog of a service: zeros if it does not exist, because it may register later.

        Raises:
            UnavailableError: The store does not answer.
        """
        now = self.clock()

        def read(tx: StoreTransaction) -> ServiceBacklog:
            return _backlogs(tx, tx.task_lists.counts(), [service_name], now)[service_name]

        return await self.store.read(read)

    async def all(self) -> StoreLoad:
        """Return the load of the first services by name.

        Raises:
            UnavailableError: The store does not answer.
        """
        now = self.clock()

        def read(tx: StoreTransaction) -> StoreLoad:
            names = [each.service_name for each in tx.services.page(after="", limit=MAX_SERVICES)]
            counts = tx.task_lists.counts()
            backlogs = _backlogs(tx, counts, names, now)
            alive = {name: count for name, (_, count) in tx.instances.counts(names, now=now).items()}
            known = set(names)
            tasks = {of: count for of, count in counts.items() if of[0] in known}
            suspects = {name: count for name, count in tx.tasks.suspects().items() if name in known}
            return StoreLoad(tasks, backlogs, alive, suspects)

        return await self.store.read(read)


def _backlogs(
    tx: StoreTransaction,
    counts: Mapping[tuple[str, TaskStatus], int],
    names: Sequence[str],
    now: datetime,
) -> dict[str, ServiceBacklog]:
    """Return the backlogs of services, by name."""
    living = [each for each in tx.instances.look(names) if each.lease_expires_at > now]
    used = tx.tasks.running_counts([each.instance_id for each in living])
    slots: Counter[str] = Counter()
    slots_used: Counter[str] = Counter()
    for each in living:
        if not each.only_suspects:
            slots[each.service_name] += _USUAL_SLOTS if each.slots is None else each.slots
            slots_used[each.service_name] += used.get(each.instance_id, 0)
    stranded = stranded_tasks(tx, names, now)
    since = tx.tasks.queued_since()
    return {
        name: ServiceBacklog(
            queued=counts.get((name, TaskStatus.QUEUED), 0),
            running=counts.get((name, TaskStatus.RUNNING), 0),
            waiting=counts.get((name, TaskStatus.WAITING), 0),
            stranded=sum(each.count for each in stranded.get(name, [])),
            oldest_queued_seconds=max(0.0, (now - since.get(name, now)).total_seconds()),
            slots=slots[name],
            slots_used=slots_used[name],
        )
        for name in names
    }
