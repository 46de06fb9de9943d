"""The queue over Kafka: publishing and subscribing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Self

from llama_deploy.concurrency.retrying import Outage
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueue
from llama_deploy.message_queues.kafka.config import KafkaMessageQueueConfig
from llama_deploy.message_queues.kafka.connection import KafkaConnection, check_name
from llama_deploy.message_queues.kafka.subscription import KafkaSubscription
from llama_deploy.messages import QueueMessage


class KafkaMessageQueue(BrokerQueue):
    """A producer, and a consumer for each subscription. `connect` gives one; `close` it."""

    durable = True

    def __init__(self, config: KafkaMessageQueueConfig | None = None) -> None:
        config = config or KafkaMessageQueueConfig()
        super().__init__(config)
        self._connection = KafkaConnection(config)

    @classmethod
    def from_url_params(cls, host: str, port: int | None = None) -> Self:
        """Return a queue for the broker at an address."""
        return cls(KafkaMessageQueueConfig(host=host, port=port))

    async def _connect(self) -> None:
        await self._connection.retry(self._connection.open)

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when all replicas in sync have the message."""
        await self._connection.retry(partial(self._connection.send, topic, message.encode()))

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        check_name(group)
        await self._connection.retry(partial(self._connection.create, topic, expires_after=expires_after))
        subscription = KafkaSubscription(self._connection, topic=topic, group=group)
        await self._connection.retry(subscription.start)
        return subscription

    def _outages(self) -> Sequence[Outage]:
        return [self._connection.outage]

    async def _check(self) -> None:
        await self._connection.ping()

    async def _disconnect(self) -> None:
        await self._connection.close()
