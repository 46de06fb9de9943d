"""To which topic an attempt goes, and which tasks are stranded. No I/O, no clock.

A task whose run is stored goes only to instances that fit, see `fit`. While all living instances of its
service do, its attempts go to the work topic, which they share; otherwise to the topic of one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llama_deploy.control_plane.decisions.fit import StoredNeeds, misfit
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.workflow_shape import WorkflowShape

SHOWN_VERSION: Final = 12
"""How many characters of a version are shown; as many identify it in a request."""


@dataclass(frozen=True, slots=True)
class Member:
    """A living instance of a service."""

    instance_id: str
    version: str | None
    free: int
    """How many more tasks it can run."""
    takes_last: bool = False
    """Whether it takes tasks only if no other instance fits: it is about to stop, or runs a suspect next."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The living instances of a service that take its tasks: not those that only run suspects."""

    service_name: str
    members: Sequence[Member]
    shapes: Mapping[str, WorkflowShape]
    """What their versions offer."""
    versions: Sequence[str | None]
    """Their versions, each once."""

    @classmethod
    def of(cls, service_name: str, members: Sequence[Member], shapes: Mapping[str, WorkflowShape]) -> Fleet:
        """Return the fleet with these members."""
        return cls(service_name, members, shapes, tuple(dict.fromkeys(each.version for each in members)))

    def has(self, instance_id: str) -> bool:
        """Whether an instance is one of them."""
        return any(each.instance_id == instance_id for each in self.members)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task demands of the version that runs it."""

    version: str | None
    """The version that has claimed it last, and therefore fits."""
    pinned_to: str | None
    """The only one that may run it. None: any that fits."""
    needs: Callable[[], StoredNeeds] | None
    """Returns what its journal needs. None: it has none."""

    def fault(self, version: str | None, fleet: Fleet) -> str | None:
        """Return why a version may not run the task. None: it may."""
        if self.pinned_to not in (None, version):
            return f"the task was moved to version {shown(self.pinned_to)}"
        if self.needs is None or (version is not None and version == self.version):
            return None
        return misfit(self.needs(), None if version is None else fleet.shapes.get(version))


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an attempt is published."""

    instance_id: str | None = None
    """The instance to whose topic it goes. None: the topic that all instances of the service share."""
    is_nowhere: bool = False
    """Whether it is not published, because no living instance fits."""


SHARED: Final = Destination()
NOWHERE: Final = Destination(is_nowhere=True)


def needs_fitting_version(task: TaskRecord) -> bool:
    """Whether not every version of its service can run a task."""
    return task.has_run or task.pinned_to is not None


def destination(
    demand: Demand, fleet: Fleet, *, sent: Mapping[str, int], may_share: bool = True
) -> Destination:
    """Return where an attempt of a task that needs a fitting version goes.

    Args:
        demand: What the task demands.
        fleet: The living instances. If there are none, the attempt waits in the shared topic.
        sent: How many attempts were sent lately to the topic of each instance.
        may_share: Whether it may go to the shared topic.
    """
    if not fleet.members:
        return SHARED
    fitting = {version for version in fleet.versions if demand.fault(version, fleet) is None}
    if may_share and len(fitting) == len(fleet.versions):
        return SHARED
    candidates = [member for member in fleet.members if member.version in fitting]
    if not candidates:
        return NOWHERE

    def rank(member: Member) -> tuple[bool, int]:
        return not member.takes_last, member.free - sent.get(member.instance_id, 0)

    best = max(candidates, key=rank)
    return Destination(best.instance_id)


def why_stranded(demand: Demand, fleet: Fleet) -> str | None:
    """Return why no living instance can run a task that needs a fitting version. None: one can."""
    if not fleet.members:
        return f"no instance of service {fleet.service_name!r} is alive"
    faults = [(version, demand.fault(version, fleet)) for version in fleet.versions]
    if any(fault is None for _, fault in faults):
        return None
    told = "; ".join(f"version {shown(version)}: {fault}" for version, fault in faults)
    return f"no living instance of service {fleet.service_name!r} fits: {told}"


def shown(version: str | None) -> str:
    """Return a version as text for users."""
    return "unknown" if version is None else version[:SHOWN_VERSION]
