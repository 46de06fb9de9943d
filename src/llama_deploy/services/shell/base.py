"""The base of every service."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.message_publishers import MessageQueuePublisherMixin
from llama_deploy.message_queues.base import Consumer, StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.services.shell.claiming_consumer import ClaimingConsumer
from llama_deploy.services.shell.control_plane_member import ControlPlaneMember


class BaseService(ControlPlaneMember, MessageQueuePublisherMixin):
    """A service: it has a name, takes messages from a queue, and registers with the control plane.

    Derive from this class to host something other than a workflow. The arguments are those of
    `ControlPlaneMember`.
    """

    _consumer: BaseMessageQueueConsumer | None = None

    @abstractmethod
    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6 API
        """Return a consumer that passes messages to the service.

        Args:
            remote: Whether it posts them to the service's URL instead of calling it.
        """

    @abstractmethod
    async def processing_loop(self) -> None:
        """Process messages until cancelled."""

    @abstractmethod
    async def process_message(self, message: QueueMessage) -> Any:
        """Process one message, its `type` the service's name. An exception returns it to the queue."""

    @abstractmethod
    async def launch_local(self) -> asyncio.Task[None]:
        """Start the service in the running loop. Cancel the returned task to stop it."""

    @abstractmethod
    async def launch_server(self) -> None:
        """Run the service with its HTTP server until cancelled."""

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Subscribe to the service's topic. The result consumes until cancelled or deregistered.

        A service whose definition has an `instance_id` claims each attempt before `process_message` sees it.
        The message's data then has `input`, the run arguments as JSON text, and `token` for the reports.

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
        """Stop consuming what `register_to_message_queue` has subscribed to. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await self.message_queue.deregister_consumer(consumer)
