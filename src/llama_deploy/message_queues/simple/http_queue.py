"""The simple queue's client: `SimpleMessageQueue` speaks HTTP with a `SimpleMessageQueueServer`."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from llama_deploy.concurrency.batching import Batcher, split
from llama_deploy.concurrency.retrying import Outage
from llama_deploy.errors import (
    InternalServerError,
    LlamaDeployError,
    PayloadTooLargeError,
    QueueFullError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.broker_connection import NEVER
from llama_deploy.message_queues.broker_queue import BrokerQueue, Publication
from llama_deploy.message_queues.polling_subscription import PollingSubscription
from llama_deploy.message_queues.settlement import open_deliveries
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.connection import QueueServerConnection, path_of
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 30.0
"""How long one request waits at the server for a message."""
MAX_RECEIVED: Final = 1024
"""The most messages of one answer."""
_MAX_POST_BYTES: Final = 1024 * 1024
"""Messages that are published at the same time share a request up to this size."""


class SimpleMessageQueue(BrokerQueue):
    """A client of a simple queue. It connects when it is first used; `close` it.

    Messages that are published at the same time travel together, and so do settlements.

    Args:
        config: The settings. None: from `fields` and the environment.
        **fields: Fields of `SimpleMessageQueueConfig` that take precedence over those of `config`.
    """

    ordered = True

    def __init__(self, config: SimpleMessageQueueConfig | None = None, **fields: Any) -> None:
        if config is None or fields:
            given = {name: getattr(config, name) for name in config.model_fields_set} if config else {}
            config = SimpleMessageQueueConfig(**{**given, **fields})
        super().__init__(config)
        self._connection = QueueServerConnection(config)
        self._batcher: Batcher[Publication, None] = Batcher(
            self._publish_batch, max_batch=512, name="queue publisher"
        )

    async def _connect(self) -> None:
        health = await self._connection.retry(partial(self._connection.request, "GET", "/health"))
        self.durable = bool(health["durable"])

    def _outages(self) -> Sequence[Outage]:
        return [self._connection.outage]

    async def _check(self) -> None:
        await self._connection.request("GET", "/health")

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the server has the message, on its disk if it has a journal."""
        await self._batcher.submit(Publication(topic, message.encode(), self._connection.give_up_at()))

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        subscription = _HttpSubscription(
            self._connection, topic=topic, group=group, expires_after=expires_after
        )
        await self._connection.retry(subscription.join)
        return subscription

    async def _disconnect(self) -> None:
        await self._batcher.close()
        await self._connection.close()

    async def _publish_batch(self, batch: Sequence[Publication]) -> list[BaseException | None]:
        """Publish, topic beside topic, and within a topic in order."""
        topics: dict[str, list[Publication]] = defaultdict(list)
        for each in batch:
            topics[each.topic].append(each)
        refused: dict[Publication, BaseException] = {}

        async def publish_to(topic: str, messages: Sequence[Publication]) -> None:
            for part in split(messages, size=lambda each: len(each.body), max_size=_MAX_POST_BYTES):
                outcomes = zip(part, await self._post(topic, part), strict=True)
                refused.update({each: error for each, error in outcomes if error is not None})

        await asyncio.gather(*(publish_to(topic, messages) for topic, messages in topics.items()))
        return [refused.get(each) for each in batch]

    async def _post(self, topic: str, messages: Sequence[Publication]) -> list[LlamaDeployError | None]:
        """Publish messages in one request or, if that is too large for the server, in several."""
        content = b"[" + b",".join(message.body for message in messages) + b"]"
        try:
            answer = await self._connection.retry(
                partial(self._connection.request, "POST", path_of("messages", topic), content=content),
                give_up_at=min(message.give_up_at for message in messages),
            )
        except PayloadTooLargeError as exc:
            if len(messages) == 1:
                return [exc]
            half = len(messages) // 2
            return await self._post(topic, messages[:half]) + await self._post(topic, messages[half:])
        except LlamaDeployError as exc:
            return [exc] * len(messages)
        taken: int = answer["accepted"]
        full = QueueFullError(
            f"topic {topic!r} has no room for the rest; retry when messages are settled", topic=topic
        )
        return [None if position < taken else full for position in range(len(messages))]


class _HttpSubscription(PollingSubscription):
    """Long-polls one topic."""

    def __init__(
        self, connection: QueueServerConnection, *, topic: str, group: str, expires_after: float | None
    ) -> None:
        super().__init__(topic, visibility_timeout=0.0)  # `join` asks the server for it
        self._id = generate_id()
        self._connection = connection
        self._group = group
        self._expires_after = expires_after

    async def join(self) -> None:
        """Create topic and group where they do not exist.

        Raises:
            UnavailableError: No connection.
        """
        answer = await self._connection.request(
            "POST",
            path_of("topics", self.topic),
            json={"group": self._group, "expires_after": self._expires_after},
        )
        self.visibility_timeout = float(answer["visibility_timeout"])

    async def _close(self) -> None:
        # The server takes everything back when the poll breaks off, so what was settled must be there before.
        await self._connection.wait_settled()
        await self._end_poll()
        try:
            await self._connection.request("DELETE", path_of("subscriptions", self._id))
        except LlamaDeployError as exc:
            logger.warning("could not tell %s that a subscription ends: %s", self._connection.broker, exc)

    async def _fetch(self, max_messages: int) -> list[Delivery]:
        received = await self._connection.retry(
            partial(self._poll_once, min(max_messages, MAX_RECEIVED)), give_up_at=NEVER
        )
        opened = open_deliveries(
            ((each["delivery_id"], each["attempt"], each["message"]) for each in received),
            topic=self.topic,
            settle=self._connection.settle,
            decode=QueueMessage.from_wire,
        )
        return list(opened)

    async def _poll_once(self, max_messages: int) -> list[dict[str, Any]]:
        params: dict[str, str | int | float] = {
            "group": self._group,
            "max": max_messages,
            "wait": POLL_SECONDS,
            "subscription": self._id,
        }
        try:
            answer = await self._connection.request(
                "GET", path_of("messages", self.topic), params=params, wait=POLL_SECONDS
            )
        except TopicNotFoundError:
            # The server was restarted without a journal, or the topic expired.
            await self.join()
            return []
        except InternalServerError as exc:
            raise UnavailableError(f"receiving from {self.topic!r} failed: {exc}") from exc
        received: list[dict[str, Any]] = answer["deliveries"]
        return received
