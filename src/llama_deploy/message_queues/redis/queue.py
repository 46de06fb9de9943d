"""The queue on Redis: publishing and subscribing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from llama_deploy.concurrency.batching import Batcher, split
from llama_deploy.concurrency.retrying import Outage
from llama_deploy.errors import ConfigError, LlamaDeployError, QueueFullError
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueue, Publication
from llama_deploy.message_queues.redis.config import RedisMessageQueueConfig
from llama_deploy.message_queues.redis.connection import RedisConnection
from llama_deploy.message_queues.redis.subscription import RedisSubscription, stream_of
from llama_deploy.messages import QueueMessage

_MAX_REQUEST_BYTES: Final = 1024 * 1024
"""Messages that are published at the same time share a request up to this size."""


class RedisMessageQueue(BrokerQueue):
    """A queue on one server. `connect` gives one; `close` it.

    Messages that are published at the same time travel together, and so do settlements.
    """

    ordered = True

    def __init__(self, config: RedisMessageQueueConfig | None = None) -> None:
        config = config or RedisMessageQueueConfig()
        super().__init__(config)
        self._connection = RedisConnection(config)
        self._batcher: Batcher[Publication, None] = Batcher(
            self._publish_batch, max_batch=512, name="redis publisher"
        )

    async def _connect(self) -> None:
        self.durable = await self._connection.retry(self._connection.inspect)

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the server has the message, in its append-only file if there is one."""
        await self._batcher.submit(Publication(topic, message.encode(), self._connection.give_up_at()))

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        subscription = RedisSubscription(
            self._connection, topic=topic, group=group, lifetime=expires_after or 0.0
        )
        await self._connection.retry(subscription.join)
        return subscription

    def _outages(self) -> Sequence[Outage]:
        return [self._connection.outage]

    async def _check(self) -> None:
        await self._connection.ping()

    async def _disconnect(self) -> None:
        await self._batcher.close()
        await self._connection.close()

    async def _publish_batch(self, batch: Sequence[Publication]) -> list[BaseException | None]:
        refused: dict[Publication, BaseException] = {}
        for part in split(batch, size=lambda each: len(each.body), max_size=_MAX_REQUEST_BYTES):
            refused |= await self._publish_part(part)
        return [refused.get(each) for each in batch]

    async def _publish_part(self, part: Sequence[Publication]) -> dict[Publication, BaseException]:
        """Publish messages in one request, and return the errors of those that are refused."""
        try:
            return await self._connection.retry(
                partial(self._add, part), give_up_at=min(each.give_up_at for each in part)
            )
        except LlamaDeployError as exc:
            topics = {each.topic for each in part}
            if len(topics) == 1 or not isinstance(exc, ConfigError):
                return dict.fromkeys(part, exc)
        # The request was refused as a whole; alone, each topic gets its own outcome.
        refused: dict[Publication, BaseException] = {}
        for topic in topics:
            refused |= await self._publish_part([each for each in part if each.topic == topic])
        return refused

    async def _add(self, part: Sequence[Publication]) -> dict[Publication, BaseException]:
        topics = list(dict.fromkeys(each.topic for each in part))
        numbers = {topic: number for number, topic in enumerate(topics, start=1)}
        limit = self._connection.config.max_messages_per_topic
        messages = [argument for each in part for argument in (numbers[each.topic], each.body)]
        streams = [stream_of(topic) for topic in topics]
        try:
            taken = await self._connection.run("publish", streams, limit, *messages)
        except QueueFullError as exc:
            return {each: QueueFullError(f"topic {each.topic!r}: {exc}", topic=each.topic) for each in part}
        full = "topic {!r} is full with {} messages; retry when some are settled"
        return {
            each: QueueFullError(full.format(each.topic, limit), topic=each.topic)
            for each, is_taken in zip(part, taken, strict=True)
            if not is_taken
        }
