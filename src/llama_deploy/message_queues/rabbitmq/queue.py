"""The queue over RabbitMQ: what it creates at the broker, and how it publishes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Self

from aio_pika import ExchangeType
from aio_pika.exceptions import ChannelPreconditionFailed, PublishError

from llama_deploy.backoff import Backoff
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    UnavailableError,
)
from llama_deploy.message_queues.base import (
    DEAD_LETTERS_SUFFIX,
    DEFAULT_GROUP,
    AbstractMessageQueue,
    Subscription,
)
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.connection import Link, translated
from llama_deploy.message_queues.rabbitmq.publishing import Publisher
from llama_deploy.message_queues.rabbitmq.subscription import RabbitMQSubscription
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_MOST_KNOWN_TOPICS: Final = 10_000
_NAME: Final = re.compile(r"[a-zA-Z0-9_.:@#,/+ -]{1,255}")
"""What the driver takes as the name of a queue."""
_MOST_MILLISECONDS: Final = 2**32 - 1
_PRACTICALLY_NO_LIMIT: Final = 1_000_000_000


class RabbitMQMessageQueue(AbstractMessageQueue):
    """Two connections to RabbitMQ, each opened when it is needed and again when it was lost. `close` it.

    A broker that runs short of memory or disk reads no more from connections that publish. Consumers have one
    of their own, so that acknowledgements still arrive.

    Args:
        config: The settings.
    """

    durable = True

    def __init__(self, config: RabbitMQMessageQueueConfig) -> None:
        super().__init__()
        self.raise_exceptions = config.raise_exceptions
        self._config = config
        self._publishing = Link(config, "publisher")
        self._consuming = Link(config, "consumer")
        self._publisher = Publisher(self._publishing, config.exchange_name)
        self._declaring = asyncio.Lock()
        self._known: set[str] = set()
        self._subscriptions: set[RabbitMQSubscription] = set()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._closed = False

    @classmethod
    async def connect(cls, config: RabbitMQMessageQueueConfig) -> Self:
        """Return a live queue.

        Raises:
            UnavailableError: The broker did not answer for `retry_seconds`.
            ConfigError: It refuses the credentials, the vhost or the exchange.
        """
        queue = cls(config)
        try:
            await queue._persist(queue._declare_exchange)
        except BaseException:
            await queue.cleanup()
            raise
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when a majority of the replicas of each group's queue has the message on disk.

        Raises:
            QueueFullError: A group of the topic holds as many messages as it may.
            SerializationError: The message holds something that is not JSON.
            InvalidRequestError: Not a topic's name.
            PayloadTooLargeError: The message is larger than the broker takes.
            UnavailableError: The broker did not confirm it for `retry_seconds`. It may have the message.
            ConfigError: The broker refuses it, such as for missing permissions.
            ClosedError: The queue is closed.
        """
        self._check_open()
        body = message.encode()
        self._under_way += 1
        try:
            await self._persist(partial(self._publish_once, body, topic), topic=topic)
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

        Raises:
            UnavailableError: The broker did not answer for `retry_seconds`.
            InvalidRequestError: Not the name of a topic or a group.
            ConfigError: The broker refuses it, such as for missing permissions.
            ClosedError: The queue is closed.
        """
        self._check_open()
        declare = partial(self._declare, topic, group, expires_after, anew=True)
        await self._persist(declare, topic=topic, group=group)
        self._check_open()  # it may have been closed meanwhile
        subscription = RabbitMQSubscription(
            self._consuming,
            self._config,
            queue_name=self._queue_name(topic, group),
            member=member,
            declare=declare,
            on_close=self._subscriptions.discard,
        )
        self._subscriptions.add(subscription)
        return subscription

    async def cleanup(self) -> None:
        """Publish and settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()
        await self._publishing.close()
        await self._consuming.close()

    def as_config(self) -> RabbitMQMessageQueueConfig:
        """Return the settings with which another process reaches the same broker."""
        return self._config

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this RabbitMQMessageQueue is closed; connect another with its config")

    async def _persist(
        self, call: Callable[[], Awaitable[None]], *, topic: str | None = None, group: str = DEFAULT_GROUP
    ) -> None:
        """Call again while the broker does not answer, for `retry_seconds`, half of them a call at most.

        Args:
            call: The call.
            topic: What it is about, for the error.
            group: The group of the topic.
        """
        loop = asyncio.get_running_loop()
        seconds = self._config.retry_seconds
        give_up_at = loop.time() + seconds
        failures = 0
        while True:
            connection = self._publishing.present
            try:
                with translated(self._config.address):
                    await self._in_time(call, min(loop.time() + seconds / 2, give_up_at), topic, group)
            except UnavailableError as exc:
                self._publishing.note_loss(exc)
                if isinstance(exc.__cause__, TimeoutError):
                    # Silent for so long, it may be dead without our knowing.
                    await self._publishing.drop(connection)
                failures += 1
                pause = _BACKOFF.delay(failures)
                if self._closed or loop.time() + pause >= give_up_at:
                    raise
                await asyncio.sleep(pause)
            else:
                self._publishing.note_return()
                return

    async def _in_time(
        self, call: Callable[[], Awaitable[None]], until: float, topic: str | None, group: str
    ) -> None:
        try:
            async with asyncio.timeout_at(until):
                await call()
        except TimeoutError as exc:
            if topic is None:
                raise
            raise UnavailableError(
                f"RabbitMQ at {self._config.address} does not answer about the queue "
                f"{self._queue_name(topic, group)!r}; if it runs, look whether this queue, its dead letters "
                "and the topic's other groups have a leader (delete a queue that has none), and whether a "
                "resource alarm (memory or disk) holds publications back"
            ) from exc

    async def _publish_once(self, body: bytes, topic: str) -> None:
        while True:
            if topic not in self._known:
                await self._declare(topic, DEFAULT_GROUP, None)
            try:
                await self._publisher.publish(body, topic)
            except PublishError:
                # Its queues have expired or were deleted.
                self._known.discard(topic)
            else:
                return

    async def _declare_exchange(self) -> None:
        name = self._config.exchange_name
        connection = await self._publishing.connection()
        try:
            async with connection.channel(publisher_confirms=False) as channel:
                await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)
        except ChannelPreconditionFailed as exc:
            raise ConfigError(
                f"RabbitMQ has an exchange {name!r} that is not a durable direct one; delete it, or set "
                "another exchange_name"
            ) from exc

    async def _declare(
        self, topic: str, group: str, expires_after: float | None, *, anew: bool = False
    ) -> None:
        """Create a topic, its dead letters and a group of it where they do not exist.

        Args:
            topic: The topic.
            group: The group.
            expires_after: As for `subscribe`.
            anew: Also if they existed when we last looked.
        """
        self._queue_name(topic, group)  # refuses bad names before anything is created
        async with self._declaring:
            if topic in self._known and not anew:
                return
            await self._declare_exchange()
            if not topic.endswith(DEAD_LETTERS_SUFFIX):
                await self._declare_queue(topic + DEAD_LETTERS_SUFFIX, DEFAULT_GROUP, expires_after)
            for name in dict.fromkeys((DEFAULT_GROUP, group)):
                await self._declare_queue(topic, name, expires_after)
            if len(self._known) >= _MOST_KNOWN_TOPICS:
                self._known.clear()
            self._known.add(topic)

    async def _declare_queue(self, topic: str, group: str, expires_after: float | None) -> None:
        name = self._queue_name(topic, group)
        arguments = self._queue_arguments(topic, expires_after)
        connection = await self._publishing.connection()
        for options in ({"durable": True, "arguments": arguments}, {"passive": True}):
            try:
                async with connection.channel(publisher_confirms=False) as channel:
                    queue = await channel.declare_queue(name, **options)
                    await queue.bind(self._config.exchange_name, routing_key=topic)
            except ChannelPreconditionFailed as exc:
                # It was created with other limits, and goes on with them.
                logger.debug("queue %s keeps the settings with which it was created: %s", name, exc)
            else:
                return

    def _queue_name(self, topic: str, group: str) -> str:
        suffix = "" if group == DEFAULT_GROUP else f":{group}"
        name = f"{self._config.exchange_name}:{topic}{suffix}"
        if not topic or not group or not _NAME.fullmatch(name + DEAD_LETTERS_SUFFIX):
            raise InvalidRequestError(
                f"RabbitMQ takes no topic {topic!r:.300} with a group {group!r:.300}: a name is empty, too "
                "long or has other characters than letters, digits and _.:@#,/+- or space"
            )
        return name

    def _queue_arguments(self, topic: str, expires_after: float | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if topic.endswith(DEAD_LETTERS_SUFFIX):
            arguments |= {
                "x-max-length": self._config.max_dead_letters,
                "x-overflow": "drop-head",
                # Without one, what comes back goes behind the rest, and newer brokers drop it after 20 times.
                "x-delivery-limit": _PRACTICALLY_NO_LIMIT,
            }
        else:
            arguments |= {
                "x-max-length": self._config.max_messages_per_topic,
                "x-overflow": "reject-publish",
                "x-delivery-limit": self._config.max_deliveries - 1,
                "x-dead-letter-exchange": self._config.exchange_name,
                "x-dead-letter-routing-key": topic + DEAD_LETTERS_SUFFIX,
            }
            if expires_after is None:
                # A dead letter waits until there is a queue for it; one that expires may not come back.
                arguments["x-dead-letter-strategy"] = "at-least-once"
        if expires_after is not None:
            arguments["x-expires"] = min(max(int(expires_after * 1000), 1), _MOST_MILLISECONDS)
        return arguments
