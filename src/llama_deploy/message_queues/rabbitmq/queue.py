"""The queue over RabbitMQ: publishing and subscribing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Self

from aio_pika.exceptions import PublishError
from pydantic import SecretStr

from llama_deploy.concurrency.retrying import Outage
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import DEFAULT_GROUP, Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueue
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.connection import RabbitMQConnection
from llama_deploy.message_queues.rabbitmq.publishing import Publisher
from llama_deploy.message_queues.rabbitmq.subscription import RabbitMQSubscription
from llama_deploy.message_queues.rabbitmq.topology import Topology
from llama_deploy.messages import QueueMessage


class RabbitMQMessageQueue(BrokerQueue):
    """Two connections to RabbitMQ, opened when they are needed and reopened when lost. `close` it.

    A broker that runs short of memory or disk stops reading from connections that publish. Consumers have a
    connection of their own, so that acknowledgements still arrive.
    """

    durable = True
    ordered = True

    def __init__(
        self,
        config: RabbitMQMessageQueueConfig | None = None,
        url: str | None = None,
        exchange_name: str | None = None,
    ) -> None:
        given: dict[str, Any] = {"url": url, "exchange_name": exchange_name}
        config = config or RabbitMQMessageQueueConfig(
            **{name: value for name, value in given.items() if value is not None}
        )
        super().__init__(config)
        self._config = config
        self._publishing_connection = RabbitMQConnection(config, "publisher")
        self._consuming_connection = RabbitMQConnection(config, "consumer")
        self._topology = Topology(self._publishing_connection, config)
        self._publisher = Publisher(self._publishing_connection, config.exchange_name)

    @classmethod
    def from_url_params(
        cls,
        username: str,
        password: str,
        host: str,
        vhost: str = "",
        port: int | None = None,
        *,
        secure: bool = False,
        exchange_name: str | None = None,
    ) -> Self:
        """Return a queue for the broker at an address."""
        given: dict[str, Any] = {"vhost": vhost or None, "port": port, "exchange_name": exchange_name}
        return cls(
            RabbitMQMessageQueueConfig(
                username=username,
                password=SecretStr(password),
                host=host,
                secure=secure,
                **{name: value for name, value in given.items() if value is not None},
            )
        )

    async def _connect(self) -> None:
        await self._publishing_connection.retry(self._topology.declare_exchange)

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when a majority of the replicas of each group's queue has the message on disk."""
        await self._retry(partial(self._publish_once, message.encode(), topic), topic, DEFAULT_GROUP)

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        declare = partial(self._topology.declare, topic, group, expires_after)
        await self._retry(declare, topic, group)
        return RabbitMQSubscription(
            self._consuming_connection,
            self._config,
            topic=topic,
            queue_name=self._topology.queue_name(topic, group),
            declare=declare,
        )

    def _outages(self) -> Sequence[Outage]:
        return [self._publishing_connection.outage, self._consuming_connection.outage]

    async def _check(self) -> None:
        await self._publishing_connection.ping()

    async def _disconnect(self) -> None:
        await self._publishing_connection.close()
        await self._consuming_connection.close()

    async def _retry(self, call: Callable[[], Awaitable[None]], topic: str, group: str) -> None:
        """Retry a call about a topic; a broker that is silent about it may have lost its leader."""
        connection = self._publishing_connection
        try:
            await connection.retry(call)
        except UnavailableError as exc:
            if not isinstance(exc.__cause__, TimeoutError):
                raise
            raise UnavailableError(
                f"{connection.broker} does not answer about the queue "
                f"{self._topology.queue_name(topic, group)!r}; if it runs, check whether this queue, its "
                "dead letters and the topic's other groups have a leader (delete a queue that has none), and "
                "whether a resource alarm (memory or disk) holds publications back"
            ) from exc

    async def _publish_once(self, body: bytes, topic: str) -> None:
        while True:
            await self._topology.ensure_topic(topic)
            try:
                await self._publisher.publish(body, topic)
            except PublishError:
                # Its queues have expired or were deleted.
                self._topology.forget(topic)
            else:
                return
