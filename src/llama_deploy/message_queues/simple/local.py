"""The simple queue inside one process: the same broker, without HTTP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

from llama_deploy.errors import ClosedError, ConflictError, QueueFullError, TopicNotFoundError
from llama_deploy.message_queues.base import (
    DEFAULT_GROUP,
    AbstractMessageQueue,
    Delivery,
    Subscription,
)
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.host import BrokerHost
from llama_deploy.message_queues.simple.settlement import Settlement, open_delivery
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

_WAIT_SECONDS = 3600.0
"""A wait in one process needs no end; the broker wants one."""


class LocalMessageQueue(AbstractMessageQueue):
    """The simple queue for code in the process of its broker. `close` it; that leaves the broker running.

    `SimpleMessageQueueServer.local_queue` gives one beside a server, `LocalMessageQueue.start` one with a
    broker of its own. Messages are encoded here too: what one consumer does to its message, no other sees.

    Args:
        broker: The broker.
        config: With what another process reaches the broker.
    """

    def __init__(self, broker: SimpleBroker, config: SimpleMessageQueueConfig) -> None:
        super().__init__()
        self.durable = broker.durable
        self.raise_exceptions = config.raise_exceptions
        self._broker = broker
        self._config = config
        self._host: BrokerHost | None = None
        self._subscriptions: set[_LocalSubscription] = set()
        self._closed = False

    @classmethod
    async def start(cls, config: SimpleMessageQueueConfig | None = None) -> Self:
        """Return a queue with a broker of its own, which ends with it.

        Raises:
            ConfigError: The journal cannot be used.
        """
        config = config or SimpleMessageQueueConfig()
        host = await BrokerHost.start(config)
        queue = cls(host.broker, config)
        queue._host = host
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the message is on disk, if there is a journal."""
        self._check_open()
        if await self._broker.publish(topic, [(message.id_, message.encode())]) != 1:
            raise QueueFullError(
                f"topic {topic!r} holds as many messages as it may; retry when some are settled", topic=topic
            )

    async def subscribe(
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        expires_after: float | None = None,
        member: str | None = None,
    ) -> Subscription:
        """Join `group` of `topic`, both created if they do not exist.

        Raises:
            ClosedError: The queue is closed.
        """
        self._check_open()
        subscription = _LocalSubscription(
            self._broker,
            topic=topic,
            group=group,
            expires_after=expires_after,
            member=member,
            on_close=self._subscriptions.discard,
        )
        subscription.join()
        self._subscriptions.add(subscription)
        return subscription

    async def cleanup(self) -> None:
        """Hand back what is under way and close. Idempotent; deletes nothing."""
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.close()
        if self._host is not None:
            await self._host.close()

    def as_config(self) -> SimpleMessageQueueConfig:
        """Return the settings with which another process reaches the broker, if it is served."""
        return self._config

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this LocalMessageQueue is closed; get another from the server, or start one")


class _LocalSubscription(Subscription):
    """Reads one topic of the broker. A `receive` that is cancelled takes nothing."""

    def __init__(
        self,
        broker: SimpleBroker,
        *,
        topic: str,
        group: str,
        expires_after: float | None,
        member: str | None,
        on_close: Callable[[_LocalSubscription], None],
    ) -> None:
        self.visibility_timeout = broker.limits.visibility_timeout
        self._broker = broker
        self._id = generate_id()
        self._topic = topic
        self._group = group
        self._expires_after = expires_after
        self._member = member
        self._on_close = on_close

    def join(self) -> None:
        """Create topic and group where they do not exist."""
        self._broker.create_topic(self._topic, expires_after=self._expires_after)
        self._broker.create_group(self._topic, self._group)
        if self._member is not None:
            self._broker.take_over(self._topic, self._group, member=self._member, subscription=self._id)

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
        """
        while True:
            try:
                handouts = await self._broker.receive(
                    self._topic,
                    group=self._group,
                    max_messages=max_messages,
                    wait=_WAIT_SECONDS,
                    subscription=self._id,
                )
            except TopicNotFoundError:  # it has expired
                self.join()
                continue
            except ConflictError as exc:
                raise ClosedError(
                    f"the subscription to {self._topic!r} is closed; subscribe again to read on"
                ) from exc
            opened = [
                await open_delivery(
                    partial(QueueMessage.decode, handout.body),
                    attempt=handout.attempt,
                    delivery_id=handout.delivery_id,
                    settle=self._settle,
                )
                for handout in handouts
            ]
            deliveries: list[Delivery] = [delivery for delivery in opened if delivery is not None]
            if deliveries:
                return deliveries

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        self._on_close(self)
        self._broker.release(self._id, closed=True)

    async def _settle(self, settlement: Settlement) -> None:
        self._broker.settle([settlement])
