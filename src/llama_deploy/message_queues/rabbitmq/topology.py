"""What the queue over RabbitMQ declares at the broker: an exchange, and a quorum queue for each group."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Final

from aio_pika import ExchangeType
from aio_pika.exceptions import ChannelPreconditionFailed

from llama_deploy.errors import ConfigError, InvalidRequestError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, DEFAULT_GROUP
from llama_deploy.message_queues.rabbitmq.config import RabbitMQMessageQueueConfig
from llama_deploy.message_queues.rabbitmq.connection import RabbitMQConnection
from llama_deploy.message_queues.remembering import remember

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-zA-Z0-9_.:@#,/+ -]{1,255}")
"""What the driver takes as the name of a queue."""
_MAX_MILLISECONDS: Final = 2**32 - 1
_UNLIMITED: Final = 1_000_000_000


class Topology:
    """Declares topics and groups; remembers the topics that exist.

    Args:
        connection: The connection.
        config: The settings.
    """

    def __init__(self, connection: RabbitMQConnection, config: RabbitMQMessageQueueConfig) -> None:
        self._connection = connection
        self._config = config
        self._declaring = asyncio.Lock()
        self._known: dict[str, None] = {}

    async def declare_exchange(self) -> None:
        """Create the exchange if it does not exist.

        Raises:
            ConfigError: It exists with other settings.
        """
        name = self._config.exchange_name
        connection = await self._connection.connection()
        try:
            async with connection.channel(publisher_confirms=False) as channel:
                await channel.declare_exchange(name, ExchangeType.DIRECT, durable=True)
        except ChannelPreconditionFailed as exc:
            raise ConfigError(
                f"RabbitMQ has an exchange {name!r} that is not a durable direct one; delete it, or set "
                "another exchange_name"
            ) from exc

    async def ensure_topic(self, topic: str) -> None:
        """Create a topic unless it is known to exist.

        Raises:
            InvalidRequestError: The name is not valid.
        """
        if topic not in self._known:
            await self.declare(topic, DEFAULT_GROUP, None, force=False)

    def forget(self, topic: str) -> None:
        """Declare a topic again before its next use."""
        self._known.pop(topic, None)

    async def declare(
        self, topic: str, group: str, expires_after: float | None, *, force: bool = True
    ) -> None:
        """Create a topic, its dead letters and a group of it where they do not exist.

        Args:
            topic: The topic.
            group: The group.
            expires_after: As for `subscribe`.
            force: Also if the topic is known to exist.
        """
        self.queue_name(topic, group)  # checks the names before anything is created
        async with self._declaring:
            if topic in self._known and not force:
                return
            await self.declare_exchange()
            if not topic.endswith(DEAD_LETTERS_SUFFIX):
                await self._declare_queue(topic + DEAD_LETTERS_SUFFIX, DEFAULT_GROUP, expires_after)
            for name in dict.fromkeys((DEFAULT_GROUP, group)):
                await self._declare_queue(topic, name, expires_after)
            remember(self._known, topic, None)

    def queue_name(self, topic: str, group: str) -> str:
        """Return the name of a group's queue.

        Raises:
            InvalidRequestError: RabbitMQ does not accept the name of the topic or of the group.
        """
        suffix = "" if group == DEFAULT_GROUP else f":{group}"
        name = f"{self._config.exchange_name}:{topic}{suffix}"
        longest = name if topic.endswith(DEAD_LETTERS_SUFFIX) else name + DEAD_LETTERS_SUFFIX
        if not topic or not group or not _NAME.fullmatch(longest):
            raise InvalidRequestError(
                f"RabbitMQ does not accept the topic {topic!r:.300} with the group {group!r:.300}: a name is "
                "empty, too long, or has characters other than letters, digits, _.:@#,/+- and spaces"
            )
        return name

    async def _declare_queue(self, topic: str, group: str, expires_after: float | None) -> None:
        name = self.queue_name(topic, group)
        arguments = self._queue_arguments(topic, expires_after)
        connection = await self._connection.connection()
        for options in ({"durable": True, "arguments": arguments}, {"passive": True}):
            try:
                async with connection.channel(publisher_confirms=False) as channel:
                    queue = await channel.declare_queue(name, **options)
                    await queue.bind(self._config.exchange_name, routing_key=topic)
            except ChannelPreconditionFailed as exc:
                # It was created with other limits, and keeps them.
                logger.debug("queue %s keeps the settings with which it was created: %s", name, exc)
            else:
                return

    def _queue_arguments(self, topic: str, expires_after: float | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"x-queue-type": "quorum"}
        if topic.endswith(DEAD_LETTERS_SUFFIX):
            arguments |= {
                "x-max-length": self._config.max_dead_letters,
                "x-overflow": "drop-head",
                # Without one, what comes back goes behind the rest, and newer brokers drop it after 20 times.
                "x-delivery-limit": _UNLIMITED,
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
            arguments["x-expires"] = min(max(int(expires_after * 1000), 1), _MAX_MILLISECONDS)
        return arguments
