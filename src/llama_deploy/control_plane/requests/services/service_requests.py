"""Services and their instances: registration, listing, heartbeats."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import TypeAdapter

from llama_deploy.control_plane.decisions import lifecycle
from llama_deploy.control_plane.decisions.destinations import why_stranded
from llama_deploy.control_plane.decisions.service_versions import registered
from llama_deploy.control_plane.decisions.takeovers import TakeoverReason
from llama_deploy.control_plane.requests.services.suspect_hints import SuspectHints
from llama_deploy.control_plane.storage.dead_processes import waiting_text
from llama_deploy.control_plane.storage.fleets import demand_of, load_fleets
from llama_deploy.control_plane.storage.present_steps import present_text
from llama_deploy.control_plane.storage.reads import Reads
from llama_deploy.control_plane.storage.unit import Unit
from llama_deploy.control_plane.storage.writer import Command, Writer
from llama_deploy.errors import InvalidRequestError, ServiceNotFoundError
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, ServiceRecord
from llama_deploy.types import BlockedStep, InstanceInfo, ServiceDefinition, StrandedTasks
from llama_deploy.types.audit import Actor, AuditAction
from llama_deploy.types.instance_protocol import (
    Heartbeat,
    HeartbeatReply,
    HeldAttempt,
    InboxEntry,
    TaskCancellation,
)
from llama_deploy.types.json_values import encode_json
from llama_deploy.types.keys import DEFAULT_TENANT, tenant_of
from llama_deploy.types.owners import Owner

logger = logging.getLogger(__name__)

MAX_INBOX_CHARACTERS: Final = 8 * 1024 * 1024
"""How many characters of events the answer to one heartbeat may hold, but for a single larger one."""
PAGE: Final = 1000
"""How many services, or instances of one service, are listed at a time."""
INSTANCES: Final = 100
"""How many instances of each service are listed with all services."""
MAX_INSTANCES: Final = 10_000
"""How many instances are listed with all services together."""
_BLOCKED: Final = TypeAdapter(list[BlockedStep])
_RESERVED_NAMES: Final = frozenset({"control_plane"})
"""Their work topics would collide with topics of the control plane."""


@dataclass(frozen=True, slots=True)
class Services:
    """Registers and lists services and their instances, and renews leases."""

    store: StateStore
    writer: Writer
    clock: Callable[[], datetime]
    """Returns the current time, aware, UTC."""
    lease: timedelta
    """How long an instance may be silent."""
    hints: SuspectHints

    async def register(self, definition: ServiceDefinition) -> None:
        """Register a service and, if the definition names one, its instance. The last registration counts.

        Raises:
            InvalidRequestError: The name is reserved.
        """
        name = definition.service_name
        if name in _RESERVED_NAMES:
            raise InvalidRequestError(f"the service name {name!r} is reserved; choose another one")
        shape = definition.workflow

        def run(unit: Unit) -> None:
            known = unit.services.find(name)
            stored = registered(
                definition,
                None if known is None else known.definition,
                living=lambda: living_instances(unit.instances.of_service(name), unit.now),
            )
            try:
                unit.services.put(ServiceRecord(name, encode_json(stored.model_dump(mode="json"))))
            except ValueError as exc:
                raise InvalidRequestError(f"the service definition cannot be encoded as JSON: {exc}") from exc
            if definition.instance_id is not None:
                instance = InstanceRecord(
                    instance_id=definition.instance_id,
                    service_name=name,
                    host=definition.host,
                    port=definition.port,
                    last_heartbeat=unit.now,
                    lease_expires_at=unit.now + self.lease,
                    slots=definition.slots,
                    process_id=definition.process_id,
                    alone=definition.alone,
                    version=None if shape is None else shape.version,
                )
                before = unit.instances.find(instance.instance_id)
                if before is not None and before.lease_expires_at > unit.now:
                    instance = _with_told(instance, before)
                unit.add_instance(instance, shape=None if shape is None else shape.model_dump_json())

        await self.writer.write(
            Command(run, Reads(services={name}, instances=_named(definition.instance_id)))
        )

    async def deregister(
        self, service_name: str, *, instance_id: str | None = None, by: Actor | None = None
    ) -> None:
        """Remove an instance or, with `instance_id` None, the service with all its instances.

        An instance that still owns attempts stays until their outcomes have arrived or its lease has expired.
        The running tasks of a removed service return to `queued` and wait until it registers again. Instances
        that are still alive register by themselves.

        Raises:
            ServiceNotFoundError: The service does not exist.
        """

        def run(unit: Unit) -> bool:
            if not unit.services.exists(service_name):
                raise ServiceNotFoundError(f"there is no service {service_name!r}", service_name=service_name)
            if instance_id is not None:
                if not unit.tasks.of_instances([instance_id]):
                    unit.remove_instances([instance_id])
                return True
            found = {instance.instance_id for instance in unit.instances.of_service(service_name)}
            if not found <= instance_ids:
                return False
            running = unit.tasks.of_instances(found)
            unit.services.delete(service_name)
            unit.fleets.forget([service_name])
            for task in running:
                unit.apply(lifecycle.take_back(task, reason=TakeoverReason.DEREGISTERED, at=unit.now))
            unit.audit.note_public(AuditAction.SERVICE_DELETE, service_name, tenant=DEFAULT_TENANT)
            return True

        while True:
            instance_ids = _named(instance_id) or await self._instances_of(service_name)
            # An instance that has registered since then has to be declared too.
            reads = Reads(services={service_name}, instances=instance_ids)
            if await self.writer.write(Command(run, reads, by)):
                return

    async def _instances_of(self, service_name: str) -> frozenset[str]:
        found = await self.store.read(lambda tx: tx.instances.load(service_names=[service_name]))
        return frozenset(instance.instance_id for instance in found)

    async def get(self, service_name: str, *, after: str = "", limit: int = PAGE) -> ServiceDefinition:
        """Return a service with the first instances whose ids follow `after`.

        Raises:
            ServiceNotFoundError: The service does not exist.
        """
        now = self.clock()

        def read(tx: StoreTransaction) -> ServiceDefinition | None:
            record = tx.services.load([service_name]).get(service_name)
            if record is None:
                return None
            page = tx.instances.page(service_name, after=after, limit=limit)
            return _listed(tx, [record], {service_name: page}, now)[service_name]

        found = await self.store.read(read)
        if found is None:
            raise ServiceNotFoundError(f"there is no service {service_name!r}", service_name=service_name)
        return found

    async def all(
        self, *, after: str = "", limit: int = PAGE, instances: int = INSTANCES
    ) -> dict[str, ServiceDefinition]:
        """Return the first services whose names follow `after`, by name and in the order of the database.

        Args:
            after: A name. Empty: from the beginning.
            limit: How many services at most.
            instances: How many instances of each at most; fewer if all together would be more than
                `MAX_INSTANCES`. Those that are blocked come first, then those with the latest leases.
        """
        now = self.clock()

        def read(tx: StoreTransaction) -> dict[str, ServiceDefinition]:
            records = tx.services.page(after=after, limit=limit)
            names = [record.service_name for record in records]
            most = min(instances, max(1, MAX_INSTANCES // max(1, len(names))))
            found: dict[str, list[InstanceRecord]] = {name: [] for name in names}
            for instance in tx.instances.first(names, most=most):
                found[instance.service_name].append(instance)
            return _listed(tx, records, found, now)

        return await self.store.read(read)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Renew an instance's lease, and return what it may have missed about the attempts that it holds.

        The heartbeat should list every task that the instance claimed earlier than one lease before
        `heard_at`. One that is missing gets its next attempt: the answer to its claim was lost, or the
        instance has dropped it; see `lifecycle.drop`. Of an instance that is blocked, the attempts are ended
        that are cancelled or over their time limit.
        """

        def run(unit: Unit) -> HeartbeatReply:
            instance = unit.instances.find(beat.instance_id)
            if instance is None:
                return HeartbeatReply(at=unit.now, known=False, stale=_stale(unit, beat))
            unit.renew_lease(_reported(instance, beat, at=unit.now), self.lease)
            self._release_forgotten(unit, beat)
            if beat.blocked_seconds:
                _end_overdue(unit, beat)
            return HeartbeatReply(
                at=unit.now,
                stale=_stale(unit, beat),
                cancelled=[
                    TaskCancellation(task_id=held.task_id, attempt=held.attempt)
                    for held in beat.held
                    if _owns(unit, beat, held) and unit.tasks.get(held.task_id).cancel_requested
                ],
                inbox=_missed_inbox(unit, beat),
            )

        task_ids = {held.task_id for held in beat.held} | {task_id for task_id, _ in beat.claiming}
        reads = Reads(tasks=task_ids, instances={beat.instance_id})
        if beat.blocked_seconds:
            reads |= Reads(ending_tasks=task_ids)
        reply = await self.writer.write(Command(run, reads))
        if reply.known and not beat.alone:
            reply.suspects = await self.hints.of(beat.instance_id)
        return reply

    def _release_forgotten(self, unit: Unit, beat: Heartbeat) -> None:
        if beat.heard_at is None:
            return
        known = {*beat.claiming, *((item.task_id, item.attempt) for item in beat.held)}
        for task in unit.tasks.of_instances([beat.instance_id]):
            # Not compared with now: claims may have been stored since the heartbeat was sent.
            long_ago = task.claimed_at is not None and task.claimed_at + self.lease < beat.heard_at
            if long_ago and (task.task_id, task.attempt) not in known:
                lost = unit.drop(task)
                logger.warning(
                    "instance %s does not hold attempt %d of task %s, which it claimed; the task is now %s",
                    beat.instance_id,
                    task.attempt,
                    task.task_id,
                    lost.status.value,
                    extra={"action": "forgotten", "task_id": task.task_id},
                )


def stranded_tasks(
    tx: StoreTransaction, service_names: Collection[str], now: datetime
) -> dict[str, list[StrandedTasks]]:
    """Return how many tasks of services no living instance can run, and why, by service."""
    fleets = load_fleets(tx, service_names, now=now)
    living = [(name, version) for name, fleet in fleets.items() for version in fleet.versions if version]
    groups = tx.runs.groups(service_names, living=living)
    counts: Counter[tuple[str, str]] = Counter()
    for group in groups:
        reason = why_stranded(demand_of(group), fleets[group.service_name])
        if reason is not None:
            counts[group.service_name, reason] += group.task_count
    found: dict[str, list[StrandedTasks]] = {}
    for (name, reason), count in sorted(counts.items()):
        found.setdefault(name, []).append(StrandedTasks(count=count, reason=reason))
    return found


def living_instances(instances: Iterable[InstanceRecord], now: datetime) -> set[str]:
    """Return the ids of the instances whose leases have not expired."""
    return {each.instance_id for each in instances if each.lease_expires_at > now}


def _named(instance_id: str | None) -> frozenset[str]:
    return frozenset() if instance_id is None else frozenset({instance_id})


def _owns(unit: Unit, beat: Heartbeat, held: HeldAttempt) -> bool:
    task = unit.tasks.find(held.task_id)
    return (
        task is not None
        and not task.status.is_terminal
        and (task.instance_id, task.attempt) == (beat.instance_id, held.attempt)
    )


def _end_overdue(unit: Unit, beat: Heartbeat) -> None:
    """End the attempts of a blocked instance that it should have ended itself."""
    for held in beat.held:
        if not _owns(unit, beat, held):
            continue
        transition = lifecycle.end_blocked(
            unit.tasks.get(held.task_id),
            running_seconds=held.running_seconds,
            timeout=held.timeout,
            at=unit.now,
        )
        if transition is not None:
            ended = unit.apply(transition)
            logger.warning(
                "task %s is %s: instance %s should have ended it, but has been blocked for %.1f s",
                held.task_id,
                ended.status.value,
                beat.instance_id,
                beat.blocked_seconds,
                extra={"action": "ended_blocked", "task_id": held.task_id},
            )


def _stale(unit: Unit, beat: Heartbeat) -> list[HeldAttempt]:
    claiming = [HeldAttempt(task_id=task_id, attempt=attempt) for task_id, attempt in beat.claiming]
    return [
        *(held for held in beat.held if not _owns(unit, beat, held)),
        # If such a claim was granted, the attempt is lost already.
        *(claim for claim in claiming if _is_over(unit, claim)),
    ]


def _is_over(unit: Unit, claim: HeldAttempt) -> bool:
    task = unit.tasks.find(claim.task_id)
    return task is None or task.status.is_terminal or task.attempt > claim.attempt


def _missed_inbox(unit: Unit, beat: Heartbeat) -> list[InboxEntry]:
    """Return the entries that the instance has not seen, as many as one answer may hold."""
    seen = {held.task_id: held.inbox_seq for held in beat.held if _owns(unit, beat, held)}
    behind = [task_id for task_id, seq in seen.items() if unit.tasks.get(task_id).inbox_length > seq]
    missed: list[InboxEntry] = []
    left = MAX_INBOX_CHARACTERS
    for task_id in behind:  # one after the other: together their inboxes may be too large for the memory
        for entry in unit.inbox.unconsumed([task_id]):
            if entry.seq <= seen[task_id]:
                continue
            left -= len(entry.event.event_obj_str)
            if left < 0 and missed:  # the next heartbeat asks for the rest
                return missed
            missed.append(entry)
    return missed


def _with_told(instance: InstanceRecord, before: InstanceRecord) -> InstanceRecord:
    """Return an instance that registers again, with what its last heartbeat has told.

    Under the same id another process may have come, of which nothing is known yet.
    """
    if (instance.service_name, instance.process_id) != (before.service_name, before.process_id):
        return instance
    return instance._replace(
        slots=0 if before.slots == 0 else instance.slots,  # it still takes no tasks
        running=before.running,
        blocked=before.blocked,
        waiting=before.waiting,
        present=before.present,
        alone=instance.alone or before.alone,
    )


def _reported(instance: InstanceRecord, beat: Heartbeat, *, at: datetime) -> InstanceRecord:
    """Return an instance with what it says of itself."""
    return instance._replace(
        last_heartbeat=at,
        slots=beat.slots,
        running=beat.running,
        blocked=_BLOCKED.dump_json(beat.blocked).decode() if beat.blocked else None,
        waiting=waiting_text(beat.held),
        present=present_text(beat.held),
        alone=beat.alone,
    )


def _listed(
    tx: StoreTransaction,
    records: Sequence[ServiceRecord],
    instances: Mapping[str, Sequence[InstanceRecord]],
    now: datetime,
) -> dict[str, ServiceDefinition]:
    """Return services by name, with these instances of each, and what the control plane fills in."""
    names = [record.service_name for record in records]
    counts, stranded = tx.instances.counts(names, now=now), stranded_tasks(tx, names, now)
    listed = {}
    for record in records:
        name = record.service_name
        total, alive = counts.get(name, (0, 0))
        listed[name] = ServiceDefinition.model_validate_json(record.definition).model_copy(
            update={
                "instances": [_instance_info(instance, now) for instance in instances[name]],
                "instances_total": total,
                "instances_alive": alive,
                "stranded": stranded.get(name, []),
            }
        )
    return listed


def seen_by(owner: Owner, service: ServiceDefinition) -> ServiceDefinition:
    """Return a service as an owner may see it: a tenant does not see what the service does for others."""
    if owner.is_default:
        return service
    return service.model_copy(update={"instances": [], "stranded": [], "host": None, "port": None})


def _blocked_by(text: str | None) -> list[BlockedStep]:
    """Return what blocks an instance. The ids of tasks of tenants are not shown."""
    steps = [] if text is None else _BLOCKED.validate_json(text)
    return [
        step.model_copy(update={"task_id": None}) if step.task_id and tenant_of(step.task_id) else step
        for step in steps
    ]


def _instance_info(instance: InstanceRecord, now: datetime) -> InstanceInfo:
    return InstanceInfo(
        instance_id=instance.instance_id,
        host=instance.host,
        port=instance.port,
        alive=instance.lease_expires_at > now,
        last_heartbeat=instance.last_heartbeat,
        slots=instance.slots,
        running=instance.running,
        blocked=_blocked_by(instance.blocked),
        version=instance.version,
    )
