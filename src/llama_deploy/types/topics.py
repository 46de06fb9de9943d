"""The names of the topics on the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONTROL_PLANE: Final = "control_plane"
"""The type of messages to the control plane. Messages to a service have the service name as their type."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one namespace."""

    namespace: str

    @property
    def control_plane(self) -> str:
        """The topic for the reports of instances."""
        return f"{self.namespace}.{CONTROL_PLANE}"

    def work(self, service_name: str) -> str:
        """The topic for the attempts of a service, which its instances share."""
        return f"{self.namespace}.{service_name}"

    def instance(self, service_name: str, instance_id: str) -> str:
        """The topic for events and cancellations of one instance."""
        return f"{self.namespace}.{service_name}.{instance_id}"
