"""Publishing to RabbitMQ, and how large messages may be."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError, PublishError
from aiormq.abc import AbstractChannel as DriverChannel
from pamqp.commands import Basic

from llama_deploy.errors import PayloadTooLargeError, QueueFullError
from llama_deploy.message_queues.rabbitmq.connection import RabbitMQConnection, close_quietly

_PERSISTENT: Final = 2
_SAFE_BYTES: Final = 128 * 1024
"""Bytes of a message that a broker takes, unless somebody has set it to less than any default."""
_MAX_PROBES: Final = 64
"""How many messages travel over channels of their own at a time; a connection has some 2 000 channels."""
_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than \D*(\d+)")
"""What a broker says when it closes a channel for the size of a message; at the end is its limit."""


@dataclass(slots=True)
class _Sizes:
    """Which message sizes the broker behind a connection takes, as far as is known."""

    connection: AbstractConnection
    taken: int = _SAFE_BYTES
    limit: int | None = None


class Publisher:
    """Publishes over a connection, and waits for the broker's confirmation.

    A broker closes the channel over which a message comes that it finds too large, whatever else is under way
    on it. So all messages share a channel but those that are larger than any it has taken: they travel alone.

    Args:
        connection: The connection; its owner closes it.
        exchange_name: The exchange.
    """

    def __init__(self, connection: RabbitMQConnection, exchange_name: str) -> None:
        self._connection = connection
        self._exchange_name = exchange_name
        self._shared: tuple[AbstractChannel, DriverChannel] | None = None
        self._opening = asyncio.Lock()
        self._probes = asyncio.Semaphore(_MAX_PROBES)
        self._sizes: _Sizes | None = None

    async def publish(self, body: bytes, topic: str) -> None:
        """Publish one message, once.

        Raises:
            PublishError: The driver's: the topic has no queue.
            QueueFullError: A group of the topic holds as many messages as it may.
            PayloadTooLargeError: The message is larger than the broker takes.
        """
        sizes = self._sizes_at(await self._connection.connection())
        try:
            async with self._channel(body, topic, sizes) as channel:
                await channel.basic_publish(
                    body,
                    exchange=self._exchange_name,
                    routing_key=topic,
                    properties=Basic.Properties(content_type="application/json", delivery_mode=_PERSISTENT),
                    mandatory=True,
                )
        except PublishError:
            raise
        except DeliveryError as exc:
            raise QueueFullError(
                f"topic {topic!r} is full; retry when some of its messages are settled",
                topic=topic,
            ) from exc
        except ChannelPreconditionFailed as exc:
            told = _TOO_LARGE.search(str(exc))
            if told is None:
                raise
            sizes.limit = int(told[1])
            self._check_size(body, topic, sizes)
            raise  # another message was too large, and this one was under way on the same channel
        else:
            sizes.taken = max(sizes.taken, len(body))

    def _sizes_at(self, connection: AbstractConnection) -> _Sizes:
        """Return the sizes of a connection: behind another one, the broker may have other settings."""
        if self._sizes is None or self._sizes.connection is not connection:
            self._sizes = _Sizes(connection)
        return self._sizes

    def _check_size(self, body: bytes, topic: str, sizes: _Sizes) -> None:
        if sizes.limit is not None and len(body) > sizes.limit:
            raise PayloadTooLargeError(
                f"a message of {len(body)} bytes for {topic!r} is larger than the {sizes.limit} bytes that "
                f"RabbitMQ at {self._connection.address} takes; raise its max_message_size",
                limit_bytes=sizes.limit,
            )

    @asynccontextmanager
    async def _channel(self, body: bytes, topic: str, sizes: _Sizes) -> AsyncIterator[DriverChannel]:
        """Give the channel for a message: the shared one, or one that may be closed for its size."""
        self._check_size(body, topic, sizes)
        if len(body) <= sizes.taken:
            yield await self._shared_channel()
            return
        async with self._probes:
            self._check_size(body, topic, sizes)  # others may have found out meanwhile
            channel = await self._open(sizes.connection)
            try:
                yield await channel.get_underlay_channel()
            finally:
                await close_quietly(channel, self._connection.address)

    async def _shared_channel(self) -> DriverChannel:
        if self._shared is None or self._shared[1].is_closed:
            async with self._opening:
                if self._shared is None or self._shared[1].is_closed:
                    channel = await self._open(await self._connection.connection())
                    self._shared = channel, await channel.get_underlay_channel()
        return self._shared[1]

    @staticmethod
    async def _open(connection: AbstractConnection) -> AbstractChannel:
        return await connection.channel(publisher_confirms=True, on_return_raises=True)
