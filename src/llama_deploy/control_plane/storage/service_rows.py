"""The services and instances of one transaction."""

from __future__ import annotations

from collections.abc import Collection

from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import InstanceRecord, ServiceRecord, VersionRecord


class InstanceRows:
    """Instances: loaded once, changed in memory, written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope) -> None:
        self._tx = tx
        self._scope = scope
        self._records: dict[str, InstanceRecord] = {}
        self._changed: set[str] = set()

    def load(self, instance_ids: Collection[str]) -> None:
        """Read instances."""
        if instance_ids:
            self._keep(self._tx.instances.load(instance_ids=instance_ids))

    def find(self, instance_id: str) -> InstanceRecord | None:
        """Return an instance, None if it does not exist."""
        self._scope.require(RowKind.INSTANCE, instance_id)
        return self._records.get(instance_id)

    def of_service(self, service_name: str) -> list[InstanceRecord]:
        """Return all instances of a service. They have to be declared before their tasks are read."""
        self._scope.require(RowKind.SERVICE, service_name)
        self.flush()
        found = self._tx.instances.load(service_names=[service_name])
        self._keep(found)
        return found

    def put(self, instance: InstanceRecord) -> None:
        """Insert an instance, or overwrite the one of the same id."""
        self._scope.require(RowKind.INSTANCE, instance.instance_id)
        self._records[instance.instance_id] = instance
        self._changed.add(instance.instance_id)

    def delete(self, instance_ids: Collection[str]) -> None:
        """Delete instances."""
        for instance_id in instance_ids:
            self._scope.require(RowKind.INSTANCE, instance_id)
        if instance_ids:
            self._tx.instances.delete(instance_ids)
            self.drop(instance_ids)

    def drop(self, instance_ids: Collection[str]) -> None:
        """Forget instances that are deleted."""
        for instance_id in instance_ids:
            self._records.pop(instance_id, None)
            self._changed.discard(instance_id)

    def flush(self) -> None:
        """Write all changes."""
        if self._changed:
            self._tx.instances.put([self._records[instance_id] for instance_id in sorted(self._changed)])
            self._changed = set()

    def _keep(self, found: Collection[InstanceRecord]) -> None:
        self._records.update((instance.instance_id, instance) for instance in found)


class ServiceRows:
    """Services, written at once."""

    def __init__(self, tx: StoreTransaction, scope: Scope, instances: InstanceRows) -> None:
        self._tx = tx
        self._scope = scope
        self._instances = instances
        self._records: dict[str, ServiceRecord] = {}

    def load(self, service_names: Collection[str]) -> None:
        """Read services."""
        if service_names:
            self._records.update(self._tx.services.load(service_names))

    def find(self, service_name: str) -> ServiceRecord | None:
        """Return a service, None if it does not exist."""
        self._scope.require(RowKind.SERVICE, service_name)
        return self._records.get(service_name)

    def exists(self, service_name: str) -> bool:
        """Whether the service exists."""
        return self.find(service_name) is not None

    def put_version(self, version: VersionRecord) -> None:
        """Insert a version of a service, and delete those that no instance has any more."""
        self._scope.require(RowKind.SERVICE, version.service_name)
        self._instances.flush()
        self._tx.services.put_versions([version])
        self._tx.services.delete_unused_versions([version.service_name])

    def put(self, service: ServiceRecord) -> None:
        """Insert a service, or overwrite the one of the same name."""
        self._scope.require(RowKind.SERVICE, service.service_name)
        self._tx.services.put([service])
        self._records[service.service_name] = service

    def delete(self, service_name: str) -> None:
        """Delete a service with its instances."""
        instances = self._instances.of_service(service_name)
        self._tx.services.delete([service_name])
        self._instances.drop([instance.instance_id for instance in instances])
        self._records.pop(service_name, None)
