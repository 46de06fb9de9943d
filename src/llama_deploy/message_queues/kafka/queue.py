"""The queue over Kafka: publishing and subscribing."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import ClassVar, Self

from llama_deploy.errors import ClosedError
from llama_deploy.message_queues.base import DEFAULT_GROUP, AbstractMessageQueue, Subscription
from llama_deploy.message_queues.kafka.config import KafkaMessageQueueConfig
from llama_deploy.message_queues.kafka.connection import Link, check_name
from llama_deploy.message_queues.kafka.subscription import KafkaSubscription
from llama_deploy.messages import QueueMessage


class KafkaMessageQueue(AbstractMessageQueue):
    """A producer, and a consumer for each subscription. `close` it.

    Args:
        config: The settings.
    """

    ordered: ClassVar[bool] = False
    durable = True

    def __init__(self, config: KafkaMessageQueueConfig) -> None:
        super().__init__()
        self.raise_exceptions = config.raise_exceptions
        self._config = config
        self._link = Link(config)
        self._subscriptions: set[KafkaSubscription] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._closed = False

    @classmethod
    async def connect(cls, config: KafkaMessageQueueConfig) -> Self:
        """Return a live queue.

        Raises:
            UnavailableError: No broker answered for `retry_seconds`.
            ConfigError: They refuse the credentials.
        """
        queue = cls(config)
        link = queue._link
        try:
            await link.persist(link.ping, give_up_at=link.give_up_at())
        except BaseException:
            await queue.cleanup()
            raise
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when all replicas in sync have the message.

        Raises:
            SerializationError: The message holds something that is not JSON.
            PayloadTooLargeError: It is larger than `max_message_bytes`.
            InvalidRequestError: Not a topic's name.
            UnavailableError: The brokers did not confirm it for `retry_seconds`. They may have it.
            ConfigError: They refuse it, such as for missing permissions.
            ClosedError: The queue is closed.
        """
        self._check_open()
        body = message.encode()
        self._under_way += 1
        try:
            await self._link.persist(
                partial(self._link.send, topic, body), give_up_at=self._link.give_up_at()
            )
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def subscribe(
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        expires_after: float | None = None,
        member: str | None = None,
    ) -> Subscription:
        """Join `group` of `topic`, both created if they do not exist.

        What an earlier member of the name `member` held comes back as that of any other.

        Raises:
            UnavailableError: The brokers did not answer for `retry_seconds`.
            InvalidRequestError: Not the name of a topic or a group.
            ConfigError: They refuse it, such as for missing permissions.
            ClosedError: The queue is closed.
        """
        del member
        self._check_open()
        check_name(group)
        give_up_at = self._link.give_up_at()
        await self._link.persist(
            partial(self._link.create, topic, expires_after=expires_after), give_up_at=give_up_at
        )
        subscription = KafkaSubscription(
            self._link, topic=topic, group=group, on_close=self._subscriptions.discard
        )
        await self._link.persist(subscription.start, give_up_at=give_up_at)
        self._subscriptions.add(subscription)
        if self._closed:  # while it joined
            await subscription.close()
        self._check_open()
        return subscription

    async def cleanup(self) -> None:
        """Publish and settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        self._link.closed = True
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()
        await self._link.close()

    def as_config(self) -> KafkaMessageQueueConfig:
        """Return the settings with which another process reaches the same brokers."""
        return self._config

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this KafkaMessageQueue is closed; connect another with its config")
