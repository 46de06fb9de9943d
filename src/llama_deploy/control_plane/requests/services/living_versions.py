"""What the living versions of a service accept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from llama_deploy.control_plane.decisions.service_versions import (
    ServiceVersion,
    fault_in_all,
    versions_of,
)
from llama_deploy.control_plane.requests.services.service_requests import living_instances
from llama_deploy.state_stores.base import StateStore, StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord


async def fault_in_living(
    store: StateStore, service_name: str, fault: Callable[[ServiceVersion], str | None], *, now: datetime
) -> str | None:
    """Return why no living version of a service accepts an input. None: one may accept it."""

    def read(tx: StoreTransaction) -> tuple[str | None, list[InstanceRecord]]:
        service = tx.services.load([service_name]).get(service_name)
        return service and service.definition, tx.instances.load(service_names=[service_name])

    stored, instances = await store.read(read)
    if stored is None:
        return None
    return fault_in_all(versions_of(stored), living=living_instances(instances, now), fault=fault)
