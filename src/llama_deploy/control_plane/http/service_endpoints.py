"""Endpoints of the 0.6 API for the control plane and its services, as methods of `ControlPlaneServer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.instance_protocol import PROTOCOL_VERSION


class ServiceEndpoints(ABC):
    """What the server is, and which services it knows."""

    config: ControlPlaneConfig

    @property
    @abstractmethod
    def plane(self) -> ControlPlane:
        """The control plane that answers."""

    async def home(self) -> dict[str, Any]:
        """Return the type of the server and its public settings."""
        return {"running": True, "type": "control_plane", **self.config.public_settings()}

    async def get_message_queue_config(self) -> dict[str, Any]:
        """Return how to connect to the message queue, without credentials."""
        return self.plane.queue.as_config().public_settings()

    async def register_service(self, service_def: ServiceDefinition) -> dict[str, Any]:
        """Register a service or an instance of it; returns the settings of the control plane."""
        await self.plane.services.register(service_def)
        return {**self.config.public_settings(), "protocol": PROTOCOL_VERSION}

    async def deregister_service(self, service_name: str, instance_id: str | None = None) -> None:
        """Remove a service, or one instance of it."""
        await self.plane.services.deregister(service_name, instance_id=instance_id)

    async def get_all_services(self) -> dict[str, ServiceDefinition]:
        """Return all services by name."""
        return await self.plane.services.all()

    async def get_service(self, service_name: str) -> ServiceDefinition:
        """Return a service with its instances."""
        return await self.plane.services.get(service_name)
