"""The simple queue inside one process: the same broker, without HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from llama_deploy.errors import QueueFullError, TopicNotFoundError
from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery, Subscription
from llama_deploy.message_queues.settlement import SettleAction, open_deliveries
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.host import BrokerHost
from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

_WAIT_SECONDS = 3600.0
"""The broker wants an end of each wait."""


class LocalMessageQueue(AbstractMessageQueue):
    """The simple queue for code in the process of its broker. `close` it; that leaves the broker running.

    `SimpleMessageQueueServer.local_queue` gives one on a server's broker, and `LocalMessageQueue.start`
    one with its own broker. Messages are encoded here too, so that consumers do not share objects.

    Args:
        broker: The broker.
        config: With what another process reaches the broker.
    """

    ordered = True

    def __init__(self, broker: SimpleBroker, config: SimpleMessageQueueConfig) -> None:
        super().__init__(config)
        self.durable = broker.durable
        self._broker = broker
        self._folder = config.journal_path.parent if config.journal_path and broker.durable else None
        self._host: BrokerHost | None = None

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
        if await self._broker.publish(topic, [(message.id_, message.encode())]) != 1:
            raise QueueFullError(
                f"topic {topic!r} is full; publish again when some of its messages are settled", topic=topic
            )

    @property
    def folder(self) -> Path | None:  # noqa: D102 - as in the base
        return self._folder

    async def _check(self) -> None:
        await self._broker.check()

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        subscription = _LocalSubscription(self._broker, topic=topic, group=group, expires_after=expires_after)
        subscription.join()
        return subscription

    async def _disconnect(self) -> None:
        if self._host is not None:
            await self._host.close()


class _LocalSubscription(Subscription):
    """Reads one topic of the broker. A `receive` that is cancelled takes nothing."""

    def __init__(self, broker: SimpleBroker, *, topic: str, group: str, expires_after: float | None) -> None:
        super().__init__(topic, visibility_timeout=broker.limits.visibility_timeout)
        self._broker = broker
        self._id = generate_id()
        self._group = group
        self._expires_after = expires_after

    def join(self) -> None:
        """Create topic and group where they do not exist."""
        self._broker.create(self.topic, self._group, expires_after=self._expires_after)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        try:
            handouts = await self._broker.receive(
                self.topic,
                group=self._group,
                max_messages=max_messages,
                wait=_WAIT_SECONDS,
                subscription=self._id,
            )
        except TopicNotFoundError:  # it has expired
            self.join()
            return []
        return list(open_deliveries(handouts, topic=self.topic, settle=self._settle))

    async def _close(self) -> None:
        self._broker.release(self._id, closed=True)

    def _settle(self, delivery_id: str, action: SettleAction, seconds: float = 0.0) -> None:
        self._broker.settle([Settlement(delivery_id, action, seconds)])
