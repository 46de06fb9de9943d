"""What any service is."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, Protocol

from llama_deploy.errors import ConfigError
from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.message_publishers import MessageQueuePublisherMixin
from llama_deploy.message_queues.base import Consumer, StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.shell.claiming_consumer import ClaimingConsumer
from llama_deploy.types import ServiceDefinition
from llama_deploy.types.services import Registration
from llama_deploy.web.connection_settings import Address


class HasTopicNamespace(Protocol):
    """What a service reads of the control plane's settings before it has registered."""

    topic_namespace: str


class BaseService(MessageQueuePublisherMixin, ABC):
    """A service: it has a name, takes messages from a queue, and is known to the control plane.

    A service that hosts something other than a workflow derives from this class.

    Args:
        name: The name under which clients call it.
        control_plane_url: Where the control plane is, if that is known already: its URL, the URLs of its
            replicas, or settings with headers and certificates.
        control_plane_config: Its settings; the topic namespace is read. None: the default namespace.
        gateway: The way to the control plane. None: HTTP, from the URL with which the service registers.
    """

    def __init__(
        self,
        name: str,
        control_plane_url: Address | None = None,
        control_plane_config: HasTopicNamespace | None = None,
        *,
        gateway: ControlPlaneGateway | None = None,
    ) -> None:
        self._name = name
        self.control_plane_url = control_plane_url
        self._gateway = gateway
        self._owns_gateway = gateway is None
        self._registration = Registration()
        if control_plane_config is not None:
            self._registration = Registration(topic_namespace=control_plane_config.topic_namespace)
        self._consumer: BaseMessageQueueConsumer | None = None

    @property
    def service_name(self) -> str:
        """The name under which clients call the service."""
        return self._name

    @property
    @abstractmethod
    def service_definition(self) -> ServiceDefinition:
        """What the service registers."""

    @abstractmethod
    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6 API
        """Return a consumer that hands messages to the service.

        Args:
            remote: Whether it posts them to the service's URL instead of calling it.
        """

    @abstractmethod
    async def processing_loop(self) -> None:
        """Process messages until cancelled."""

    @abstractmethod
    async def process_message(self, message: QueueMessage) -> Any:
        """Process one message, its `type` the service's name. Raising hands it back to the queue."""

    @abstractmethod
    async def launch_local(self) -> asyncio.Task[None]:
        """Start the service in the running loop; returns its task, which stops it when cancelled."""

    @abstractmethod
    async def launch_server(self) -> None:
        """Run the service with its HTTP server until cancelled."""

    def get_topic(self, msg_type: str) -> str:
        """Return the topic for messages of this type: `{topic_namespace}.{msg_type}`."""
        return f"{self._registration.topic_namespace}.{msg_type}"

    async def register_to_control_plane(self, control_plane_url: Address | None = None) -> None:
        """Register the service. Doing it again updates what is registered.

        Args:
            control_plane_url: Such as `http://127.0.0.1:8000`, or as at construction. None: the one given at
                construction, or the gateway's.

        Raises:
            ConfigError: There is neither a URL nor a gateway.
            UnavailableError: The control plane does not answer.
        """
        url = control_plane_url or self.control_plane_url
        if self._gateway is None or (self._owns_gateway and url not in (None, self.control_plane_url)):
            if url is None:
                raise ConfigError("register_to_control_plane needs the URL of the control plane")
            if self._gateway is not None:
                await self._gateway.close()
            self._gateway = HttpGateway(url)
        self.control_plane_url = url
        self._registration = await self._gateway.register(self.service_definition)

    async def deregister_from_control_plane(self) -> None:
        """Take back what was registered: this instance if it registered as one, else the service.

        Raises:
            UnavailableError: The control plane does not answer.
        """
        definition = self.service_definition
        await self.gateway.deregister(definition.service_name, definition.instance_id)

    @property
    def gateway(self) -> ControlPlaneGateway:
        """The way to the control plane.

        Raises:
            ConfigError: The service is not registered.
        """
        if self._gateway is None:
            raise ConfigError(
                f"service {self.service_name!r} does not know its control plane; "
                "call register_to_control_plane first"
            )
        return self._gateway

    async def get_session_state(self, session_id: str) -> dict[str, Any] | None:
        """Return the state of a session, None if there is no such session.

        Raises:
            ConfigError: The service is not registered.
            UnavailableError: The control plane does not answer.
        """
        return await self.gateway.get_session_state(session_id)

    async def update_session_state(self, session_id: str, state: dict[str, Any]) -> None:
        """Merge the keys of `state` into the state of a session.

        Raises:
            ConfigError: The service is not registered.
            SessionNotFoundError: There is no such session.
            UnavailableError: The control plane does not answer.
        """
        await self.gateway.update_session_state(session_id, state)

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Join the service's topic; the result consumes until cancelled or deregistered.

        A service whose definition has an `instance_id` claims each attempt before `process_message` sees it:
        the message's data then has `input`, the run arguments as JSON text, and `token` for the reports.

        Raises:
            UnavailableError: The queue does not answer.
        """
        self._consumer = self.as_consumer()
        consumer: Consumer = self._consumer
        instance_id = self.service_definition.instance_id
        if instance_id is not None:
            consumer = ClaimingConsumer(consumer, instance_id=instance_id, gateway=lambda: self.gateway)
        return await self.message_queue.register_consumer(consumer, self.get_topic(self.service_name))

    async def deregister_from_message_queue(self) -> None:
        """Stop consuming what `register_to_message_queue` has begun. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self.message_queue.deregister_consumer(consumer)

    async def close_gateway(self) -> None:
        """Close the connections to the control plane that the service opened itself. Idempotent."""
        if self._owns_gateway and self._gateway is not None:
            await self._gateway.close()
