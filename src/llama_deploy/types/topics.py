"""Names of the queue's topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONTROL_PLANE: Final = "control_plane"
"""The type of the messages to the control plane; those to a service have its name as their type."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one namespace."""

    namespace: str

    @property
    def control_plane(self) -> str:
        """What instances tell the control plane."""
        return f"{self.namespace}.{CONTROL_PLANE}"

    def work(self, service_name: str) -> str:
        """Attempts that any instance of the service may claim."""
        return f"{self.namespace}.{service_name}"

    def instance(self, service_name: str, instance_id: str) -> str:
        """What concerns one instance."""
        return f"{self.namespace}.{service_name}.{instance_id}"
