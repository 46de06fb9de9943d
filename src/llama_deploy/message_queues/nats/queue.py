"""The queue on NATS JetStream: publishing and subscribing."""

from __future__ import annotations

from collections.abc import Sequence

from llama_deploy.concurrency.retrying import Outage
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueue
from llama_deploy.message_queues.nats.config import NatsMessageQueueConfig
from llama_deploy.message_queues.nats.connection import NatsConnection
from llama_deploy.message_queues.nats.subscription import NatsSubscription
from llama_deploy.message_queues.nats.topics import NatsTopics
from llama_deploy.messages import QueueMessage


class NatsMessageQueue(BrokerQueue):
    """A client of NATS JetStream, over one connection. `connect` gives one; `close` it.

    Publications at the same time share the connection and wait for their confirmations concurrently.
    """

    ordered = True

    def __init__(self, config: NatsMessageQueueConfig | None = None) -> None:
        config = config or NatsMessageQueueConfig()
        super().__init__(config)
        self._connection = NatsConnection(config)
        self._topics = NatsTopics(self._connection)

    async def _connect(self) -> None:
        await self._connection.open()
        self.durable = self._connection.durable

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the stream has the message, on as many servers as it has replicas."""
        await self._topics.store(topic, message.encode(), message.id_)

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        settings = self._topics.group_settings(topic, group, expires_after)
        subscription = NatsSubscription(self._connection, self._topics, topic=topic, settings=settings)
        await self._connection.call(subscription.join)
        return subscription

    def _outages(self) -> Sequence[Outage]:
        return [self._connection.outage]

    async def _check(self) -> None:
        await self._connection.ping()

    async def _disconnect(self) -> None:
        await self._connection.close()
