"""The living instances of services, as far as dispatching needs them: read once, then kept for a moment."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from llama_deploy.control_plane.decisions.deaths import is_suspect
from llama_deploy.control_plane.decisions.destinations import (
    SHARED,
    Demand,
    Destination,
    Fleet,
    Member,
    destination,
    needs_fitting_version,
    why_stranded,
)
from llama_deploy.control_plane.decisions.fit import StoredNeeds
from llama_deploy.control_plane.storage.run_rows import RunRows
from llama_deploy.control_plane.storage.service_rows import InstanceRows
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import (
    InstanceRecord,
    RunGroupRecord,
    RunHeadRecord,
    RunNeedsRecord,
    TaskRecord,
)
from llama_deploy.types.workflow_shape import RunNeeds, WorkflowShape

_KEPT: Final = timedelta(seconds=1)
"""How long a fleet is used that was read, unless an instance joins or leaves it here."""
_MAX_PLACES: Final = 100_000
"""Of how many attempts it is remembered where they were sent."""


@dataclass(slots=True)
class KnownFleet:
    """A fleet that was read."""

    fleet: Fleet
    read_at: datetime
    sent: Counter[str] = field(default_factory=Counter)
    """How many attempts were sent to the topic of each instance since then."""


@dataclass(frozen=True, slots=True)
class FleetChange:
    """An instance has joined the fleet of its service, or has left it."""

    service_name: str
    instance_id: str
    version: str | None
    has_joined: bool


class Places:
    """Where attempts were sent that did not go to the topic which all instances share: an aid, bounded."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], Destination] = OrderedDict()

    def of(self, task: TaskRecord) -> Destination | None:
        """Return where an attempt was sent. None: to all instances, or not from here."""
        return self._found.get((task.task_id, task.attempt))

    def note(self, task: TaskRecord, destination: Destination) -> None:
        """An attempt is sent."""
        self._found.pop((task.task_id, task.attempt), None)
        if destination == SHARED:
            return
        if len(self._found) >= _MAX_PLACES:
            self._found.popitem(last=False)
        self._found[task.task_id, task.attempt] = destination

    def has(self, instance_id: str) -> bool:
        """Whether attempts were sent to the topic of an instance."""
        return Destination(instance_id) in self._found.values()


@dataclass(frozen=True, slots=True)
class KnownFleets:
    """What outlives a transaction: the claim of an attempt checks again what was decided with it."""

    by_service: dict[str, KnownFleet] = field(default_factory=dict)
    places: Places = field(default_factory=Places)


class Fleets:
    """Decides for the tasks of one transaction where their attempts go, and who may claim them."""

    def __init__(
        self,
        tx: StoreTransaction,
        known: KnownFleets,
        *,
        instances: InstanceRows,
        runs: RunRows,
        now: datetime,
    ) -> None:
        self._tx = tx
        self._known = known
        self._instances = instances
        self._runs = runs
        self._now = now

    def of(self, service_name: str) -> Fleet:
        """Return the living instances of a service."""
        return self._of(service_name).fleet

    def forget(self, service_names: Iterable[str]) -> None:
        """Read the instances of services again: some have joined or left, or others may not be known here."""
        for name in service_names:
            self._known.by_service.pop(name, None)

    def note(self, task: TaskRecord, destination: Destination) -> None:
        """The attempt of a task is sent, or nobody fits."""
        if needs_fitting_version(task):
            self._known.places.note(task, destination)

    def has_sent_to(self, instance_id: str) -> bool:
        """Whether attempts were sent to the topic of an instance, as far as is known here."""
        return self._known.places.has(instance_id)

    def moved(self, task: TaskRecord, changes: Collection[FleetChange]) -> Destination | None:
        """Return where the attempt of a queued task has to be sent because instances have joined or left.

        Args:
            task: The task.
            changes: The changes of its service.

        Returns:
            None: it is where it should be, or still nobody fits.
        """
        if not needs_fitting_version(task) or is_suspect(task):
            return None  # a suspect waits in its topic, whichever instances live
        joined = {each.instance_id for each in changes if each.has_joined}
        before = self._known.places.of(task)
        chosen = self.destination(task)
        if chosen.is_nowhere or chosen == before:
            return None
        if chosen.instance_id in joined:
            return chosen
        if before is None:
            has_changed = self._was_nowhere(task, joined) or self._may_have_left(task, changes)
        else:
            has_changed = before.is_nowhere or not self.of(task.target).has(before.instance_id or "")
        return chosen if has_changed else None

    def _was_nowhere(self, task: TaskRecord, joined: AbstractSet[str]) -> bool:
        """Whether one of the instances that have joined fits, and none of those before."""
        fleet, demand = self.of(task.target), self._demand(task)
        fitting = {v for v in fleet.versions if demand.fault(v, fleet) is None}
        before = [each for each in fleet.members if each.instance_id not in joined]
        can_run = [each for each in fleet.members if each.version in fitting]
        return bool(before and can_run) and all(each.instance_id in joined for each in can_run)

    def _may_have_left(self, task: TaskRecord, changes: Collection[FleetChange]) -> bool:
        """Whether the attempt may have waited at an instance that has left."""
        fleet, demand = self.of(task.target), self._demand(task)
        left = {each.version for each in changes if not each.has_joined}
        return any(version not in fleet.shapes or demand.fault(version, fleet) is None for version in left)

    def destination(self, task: TaskRecord, *, may_share: bool = True) -> Destination:
        """Return where the attempt of a task goes.

        Args:
            task: The task.
            may_share: Whether it may go to the topic that all instances share.
        """
        if not needs_fitting_version(task) or is_suspect(task):
            return SHARED
        known = self._of(task.target)
        if may_share and task.pinned_to is None and known.fleet.versions == (task.version,):
            return SHARED
        demand = self._demand(task)
        chosen = destination(demand, known.fleet, sent=known.sent, may_share=may_share)
        if chosen.is_nowhere and known.read_at != self._now:
            self.forget([task.target])  # one that fits may just have registered at another control plane
            known = self._of(task.target)
            chosen = destination(demand, known.fleet, sent=known.sent, may_share=may_share)
        if chosen.instance_id is not None:
            known.sent[chosen.instance_id] += 1
        return chosen

    def fault(self, task: TaskRecord, instance: InstanceRecord) -> str | None:
        """Return why an instance may not claim a task. None: it may."""
        if not needs_fitting_version(task):
            return None
        if instance.version is not None and instance.version not in self.of(task.target).shapes:
            # Another control plane has registered it.
            self.forget([task.target])
        fault = self.fault_of_version(task, instance.version)
        if fault is not None and not self.of(task.target).has(instance.instance_id):
            # The attempt is sent on: to nobody that is not known, nor to all as if nobody were there.
            self.forget([task.target])
        return fault

    def fault_of_version(self, task: TaskRecord, version: str | None) -> str | None:
        """Return why a version cannot run a task that needs a fitting version. None: it can."""
        return self._demand(task).fault(version, self.of(task.target))

    def fault_of_all(self, task: TaskRecord) -> str | None:
        """Return why no living instance can continue the run of a task. None: one can, or none is alive."""
        self.forget([task.target])  # one that fits may just have registered at another control plane
        fleet = self.of(task.target)
        return why_stranded(self._demand(task), fleet) if fleet.members else None

    def fault_of_fork(self, task: TaskRecord, run: RunHeadRecord) -> str | None:
        """Return as `fault_of_all` does for the run of a task as it was earlier."""
        self.forget([task.target])
        fleet = self.of(task.target)
        demand = Demand(None, None, lambda: _needs(run.fingerprint, run.needs))
        return why_stranded(demand, fleet) if fleet.members else None

    def _of(self, service_name: str) -> KnownFleet:
        known = self._known.by_service.get(service_name)
        if known is None or not timedelta() <= self._now - known.read_at < _KEPT:
            self._instances.flush()
            fleet = load_fleets(self._tx, [service_name], now=self._now)[service_name]
            known = self._known.by_service[service_name] = KnownFleet(fleet, self._now)
        return known

    def _demand(self, task: TaskRecord) -> Demand:
        self._runs.flush_head(task.task_id)
        return load_demand(self._tx, task)


def load_fleets(tx: StoreTransaction, service_names: Iterable[str], *, now: datetime) -> dict[str, Fleet]:
    """Return the living instances of services, by service."""
    members: dict[str, list[Member]] = {name: [] for name in service_names}
    found = tx.instances.look(list(members))
    living = [each for each in found if each.lease_expires_at > now and not each.only_suspects]
    # With one version nobody asks for free slots.
    is_mixed = len({each.version for each in living}) > 1
    running = tx.tasks.running_counts([each.instance_id for each in living]) if is_mixed else {}
    for each in living:
        free = (1 if each.slots is None else each.slots) - running.get(each.instance_id, 0)
        member = Member(each.instance_id, each.version, free, takes_last=each.slots == 0)
        members[each.service_name].append(member)
    shapes: dict[str, dict[str, WorkflowShape]] = {name: {} for name in members}
    # Also without members: an instance whose lease has just ended may claim.
    for version in tx.services.load_versions(list(members)):
        shapes[version.service_name][version.version] = _shape(version.shape)
    return {name: Fleet.of(name, each, shapes[name]) for name, each in members.items()}


def load_demand(tx: StoreTransaction, task: TaskRecord) -> Demand:
    """Return what a task demands. What its run needs is read when it is asked for."""

    def needs() -> StoredNeeds:
        return _needs(*tx.runs.load_needs([task.task_id])[task.task_id])

    return Demand(task.version, task.pinned_to, needs if task.has_run else None)


def demand_of(group: RunGroupRecord) -> Demand:
    """Return what the tasks of a group demand."""
    stored = None if group.fingerprint is None else RunNeedsRecord(group.fingerprint, group.needs)
    return Demand(group.version, group.pinned_to, None if stored is None else lambda: _needs(*stored))


@lru_cache(maxsize=256)
def _shape(text: str) -> WorkflowShape:
    return WorkflowShape.model_validate_json(text)


@lru_cache(maxsize=256)
def _needs(fingerprint: str, needs: str | None) -> StoredNeeds:
    return StoredNeeds(fingerprint, None if needs is None else RunNeeds.model_validate_json(needs))
