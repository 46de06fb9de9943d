"""The versions of a service: what the workflows of its living instances accept.

While a service is upgraded, instances of several versions live. Input is valid if one of them accepts it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Final

from pydantic import BaseModel, Field

from llama_deploy.types import ServiceDefinition, SessionPolicy
from llama_deploy.types.json_values import JsonObject

_MAX_LISTED: Final = 32
"""How many instances of a version are listed."""
_MAX_OLDER: Final = 4
"""How many versions are kept beside the last one."""


class ServiceVersion(BaseModel):
    """What the instances of one version accept; see `ServiceDefinition`."""

    input_check: JsonObject | None = None
    accepted_events: list[str] | None = None
    event_schemas: dict[str, JsonObject] | None = None
    instances: list[str] | None = None
    """Its instances when one has registered last. None: too many to list."""

    def accepts_as(self, other: ServiceVersion) -> bool:
        """Whether it accepts the same as another one."""
        return self.model_copy(update={"instances": None}) == other.model_copy(update={"instances": None})


class StoredService(ServiceDefinition):
    """A service as it is stored: the last definition, and the other versions that may be alive."""

    instances_of_version: list[str] | None = None
    """Those of the version that has registered last. None: too many to list."""
    older: list[ServiceVersion] = Field(default_factory=list)

    @property
    def versions(self) -> list[ServiceVersion]:
        """All versions; the first one has registered last."""
        last = ServiceVersion(
            input_check=self.input_check,
            accepted_events=self.accepted_events,
            event_schemas=self.event_schemas,
            instances=self.instances_of_version,
        )
        return [last, *self.older]


@lru_cache(maxsize=128)
def versions_of(stored: str) -> Sequence[ServiceVersion]:
    """Return the versions of a service from its stored definition; parsed once for each."""
    return tuple(_service(stored).versions)


def session_policy_of(stored: str) -> SessionPolicy:
    """Return the policy of a session that begins with a task of a service, from its stored definition."""
    return _service(stored).session_policy or SessionPolicy.ENQUEUE


@lru_cache(maxsize=128)
def _service(stored: str) -> StoredService:
    return StoredService.model_validate_json(stored)


def registered(
    definition: ServiceDefinition, known: str | None, *, living: Callable[[], Collection[str]]
) -> StoredService:
    """Return what to store of a service when an instance, or its name alone, registers.

    Args:
        definition: What registers.
        known: What is stored. None: nothing.
        living: Returns the living instances of the service.
    """
    left_out = {"instances", "instance_id", "process_id", "slots", "alone", "workflow", "stranded"}
    bare = definition.model_dump(exclude=left_out)
    new = StoredService(**bare)
    before = [] if known is None else versions_of(known)
    if definition.instance_id is None:
        return new
    own = new.versions[0]
    if len(before) == 1 and before[0].instances is None and own.accepts_as(before[0]):
        return new
    others = set(living()) - {definition.instance_id}
    listed = {each for version in before for each in version.instances or ()}
    members, older = {definition.instance_id}, []
    for version in before:
        alive = others & set(version.instances) if version.instances is not None else others - listed
        if own.accepts_as(version):
            members |= alive
        elif alive:
            older.append(version.model_copy(update={"instances": _listed(alive)}))
    return new.model_copy(update={"instances_of_version": _listed(members), "older": older[:_MAX_OLDER]})


def _listed(instances: Collection[str]) -> list[str] | None:
    return sorted(instances) if len(instances) <= _MAX_LISTED else None


def fault_in_all(
    versions: Sequence[ServiceVersion],
    *,
    living: Collection[str],
    fault: Callable[[ServiceVersion], str | None],
) -> str | None:
    """Return why no living version accepts an input. None: one does, or may do.

    Args:
        versions: As stored; the first one has registered last.
        living: The living instances of the service. Without any, all versions count.
        fault: Returns why a version does not accept the input.
    """
    alive = set(living)
    unlisted = alive.difference(*(version.instances or () for version in versions))
    if unlisted and all(version.instances is not None for version in versions):
        return None  # registered at the same time as another version, at another control plane
    asked = [v for v in versions if v.instances is None or alive.intersection(v.instances)] or versions
    faults = [fault(version) for version in asked]
    return None if None in faults else faults[0]
