"""A service's membership of a control plane: registration, topics and session state."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, Protocol

from llama_deploy.errors import ConfigError
from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.worker.shared_process import this_process
from llama_deploy.types import ServiceDefinition, generate_id
from llama_deploy.types.services import Registration
from llama_deploy.types.topics import Topics
from llama_deploy.web.connection_settings import Address


class ControlPlaneSettings(Protocol):
    """What a service reads from the control plane's settings before it has registered."""

    topic_namespace: str

    @property
    def url(self) -> str:
        """The control plane's URL."""


class ControlPlaneMember(ABC):
    """Has a name, and can register with a control plane.

    Args:
        name: The name that clients call.
        control_plane_url: The control plane's URL, the URLs of its replicas, or settings with headers and
            certificates, if they are known already.
        control_plane_config: The control plane's settings: the topic namespace and, unless it is given, the
            URL are read from it. None: the default namespace.
        gateway: The connection to the control plane. None: HTTP, to the URL with which the service registers.
    """

    def __init__(
        self,
        name: str,
        control_plane_url: Address | None = None,
        control_plane_config: ControlPlaneSettings | None = None,
        *,
        gateway: ControlPlaneGateway | None = None,
    ) -> None:
        self._name = name
        self.control_plane_url = control_plane_url
        self._instance_id = generate_id()
        self._gateway = gateway
        self._owns_gateway = gateway is None
        self._registered = asyncio.Event()
        self._registration = Registration()
        if control_plane_config is not None:
            self.control_plane_url = control_plane_url or control_plane_config.url
            self._registration = Registration(topic_namespace=control_plane_config.topic_namespace)

    @property
    def service_name(self) -> str:
        """The name that clients call."""
        return self._name

    @property
    @abstractmethod
    def service_definition(self) -> ServiceDefinition:
        """What the service registers. Without an `instance_id` the service gets one."""

    @property
    def _definition(self) -> ServiceDefinition:
        """What the service registers, with the ids of this instance and this process."""
        definition = self.service_definition
        instance_id = definition.instance_id or self._instance_id
        process_id = definition.process_id or this_process().id
        return definition.model_copy(update={"instance_id": instance_id, "process_id": process_id})

    @property
    def topics(self) -> Topics:
        """The names of the topics."""
        return Topics(self._registration.topic_namespace)

    def get_topic(self, msg_type: str) -> str:
        """Return the topic for messages of this type: `{topic_namespace}.{msg_type}`, see `topic_part`."""
        return self.topics.work(msg_type)

    async def register_to_control_plane(self, control_plane_url: Address | None = None) -> None:
        """Register the service. Doing it again updates the registration.

        Args:
            control_plane_url: Such as `http://127.0.0.1:8000`, or as at construction. None: the one given at
                construction, or the gateway's.

        Raises:
            ConfigError: There is neither a URL nor a gateway.
            UnavailableError: The control plane does not answer.
        """
        if control_plane_url not in (None, self.control_plane_url):
            await self.close_gateway()
            self.control_plane_url = control_plane_url
        self._registration = await self.gateway.register(self._definition)
        self._registered.set()

    async def deregister_from_control_plane(self) -> None:
        """Remove the registration of this instance. Others of the service stay.

        Raises:
            UnavailableError: The control plane does not answer.
        """
        definition = self._definition
        await self.gateway.deregister(definition.service_name, definition.instance_id)

    @property
    def gateway(self) -> ControlPlaneGateway:
        """The connection to the control plane. It is opened when it is needed; see `close_gateway`.

        Raises:
            ConfigError: The URL of the control plane is not known.
        """
        if self._gateway is None:
            if self.control_plane_url is None:
                raise ConfigError(
                    f"service {self.service_name!r} does not know its control plane; "
                    "call register_to_control_plane with its URL first"
                )
            self._gateway = HttpGateway(self.control_plane_url)
        return self._gateway

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """Return the state of a session. None: the session does not exist.

        Raises:
            ConfigError: The URL of the control plane is not known.
            UnavailableError: The control plane does not answer.
        """
        return await self.gateway.get_session_state(session_id)

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Merge the keys of `state` into the state of a session.

        Raises:
            ConfigError: The URL of the control plane is not known.
            SessionNotFoundError: The session does not exist.
            UnavailableError: The control plane does not answer.
        """
        await self.gateway.update_session_state(session_id, state)

    async def close_gateway(self) -> None:
        """Close the connection to the control plane if the service opened it. Idempotent."""
        if self._owns_gateway and self._gateway is not None:
            gateway, self._gateway = self._gateway, None
            await gateway.close()
