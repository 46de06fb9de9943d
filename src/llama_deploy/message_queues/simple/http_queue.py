"""The simple queue's client: `SimpleMessageQueue` speaks HTTP with a `SimpleMessageQueueServer`."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

from llama_deploy.batching import Batcher
from llama_deploy.errors import (
    ClosedError,
    InternalServerError,
    LlamaDeployError,
    QueueFullError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.base import (
    DEFAULT_GROUP,
    AbstractMessageQueue,
    Delivery,
    Subscription,
)
from llama_deploy.message_queues.simple.config import SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.connection import ServerLink, path_of
from llama_deploy.message_queues.simple.settlement import open_delivery
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 30.0
"""How long one request waits at the server for a message."""
MAX_RECEIVED: Final = 1024
"""The most messages of one answer."""
_MAX_POST_BYTES: Final = 1024 * 1024
"""Messages that are published at the same time share a request up to this size."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A message that waits for its publication."""

    topic: str
    body: bytes
    give_up_at: float


class SimpleMessageQueue(AbstractMessageQueue):
    """A client of a simple queue. It connects when it is first used; `close` it.

    Messages that are published at the same time travel together, and so do settlements. A settlement does
    not wait for its answer: one that is lost lets the message come back, as at-least-once means anyway.

    Args:
        config: The settings. None: from `fields` and the environment.
        **fields: Fields of `SimpleMessageQueueConfig` that go before those of `config`.
    """

    def __init__(self, config: SimpleMessageQueueConfig | None = None, **fields: Any) -> None:
        super().__init__()
        if config is None or fields:
            given = {name: getattr(config, name) for name in config.model_fields_set} if config else {}
            config = SimpleMessageQueueConfig(**{**given, **fields})
        self.raise_exceptions = config.raise_exceptions
        self._config = config
        self._link = ServerLink(config)
        self._subscriptions: set[_HttpSubscription] = set()
        self._closed = False
        self._publishing: Batcher[_Outgoing, None] = Batcher(
            self._publish_batch, max_batch=512, name="queue publisher"
        )

    @classmethod
    async def connect(cls, config: SimpleMessageQueueConfig) -> Self:
        """Return a client, after the server has answered.

        Raises:
            UnavailableError: The server does not answer.
        """
        queue = cls(config)
        link = queue._link
        try:
            health = await link.persist(partial(link.request, "GET", "/health"), give_up_at=link.give_up_at())
        except BaseException:
            await queue.cleanup()
            raise
        queue.durable = bool(health["durable"])
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the server has the message, on its disk if it has a journal.

        Raises:
            QueueFullError: The topic holds as many messages as it may.
            PayloadTooLargeError: The message is larger than the server takes.
            SerializationError: The message holds something that is not JSON.
            UnavailableError: The server did not answer for `retry_seconds`. It may have the message.
            ClosedError: The queue is closed.
        """
        self._check_open()
        await self._publishing.submit(_Outgoing(topic, message.encode(), self._link.give_up_at()))

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
            UnavailableError: The server did not answer for `retry_seconds`.
            ClosedError: The queue is closed.
        """
        self._check_open()
        subscription = _HttpSubscription(
            self._link,
            topic=topic,
            group=group,
            expires_after=expires_after,
            member=member,
            on_close=self._subscriptions.discard,
        )
        await self._link.persist(subscription.join, give_up_at=self._link.give_up_at())
        if self._closed:  # while it joined
            await subscription.close()
        self._check_open()
        self._subscriptions.add(subscription)
        return subscription

    async def cleanup(self) -> None:
        """Publish and settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await self._publishing.close()
        await self._link.close()

    def as_config(self) -> SimpleMessageQueueConfig:
        """Return the settings with which another process reaches the same server."""
        return self._config

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this SimpleMessageQueue is closed; connect another with its config")

    async def _publish_batch(self, batch: Sequence[_Outgoing]) -> list[BaseException | None]:
        """Publish, topic beside topic, and within a topic in order."""
        topics: dict[str, list[int]] = defaultdict(list)
        for position, outgoing in enumerate(batch):
            topics[outgoing.topic].append(position)
        outcomes: list[BaseException | None] = [None] * len(batch)

        async def publish_to(topic: str, positions: Sequence[int]) -> None:
            for part in _parts(batch, positions):
                taken, refusal = await self._post(topic, [batch[position] for position in part])
                for position in part[taken:]:
                    outcomes[position] = refusal

        await asyncio.gather(*(publish_to(topic, positions) for topic, positions in topics.items()))
        return outcomes

    async def _post(self, topic: str, messages: Sequence[_Outgoing]) -> tuple[int, LlamaDeployError]:
        """Publish messages; return how many were taken, and what befell the others."""
        content = b"[" + b",".join(message.body for message in messages) + b"]"
        try:
            answer = await self._link.persist(
                partial(self._link.request, "POST", path_of("messages", topic), content=content),
                give_up_at=min(message.give_up_at for message in messages),
            )
        except LlamaDeployError as exc:
            return 0, exc
        return answer["accepted"], QueueFullError(
            f"topic {topic!r} has no room for the rest; retry when messages are settled", topic=topic
        )


class _HttpSubscription(Subscription):
    """Long-polls one topic. A `receive` that is cancelled leaves its poll to the next one.

    Cancelling the poll itself could lose an answer that is on its way, until its visibility timeout.
    """

    def __init__(
        self,
        link: ServerLink,
        *,
        topic: str,
        group: str,
        expires_after: float | None,
        member: str | None,
        on_close: Callable[[_HttpSubscription], None],
    ) -> None:
        self._id = generate_id()
        self._link = link
        self._topic = topic
        self._group = group
        self._expires_after = expires_after
        self._member = member
        self._on_close = on_close
        self._poll: asyncio.Task[list[Delivery]] | None = None
        self._rest: list[Delivery] = []
        self._closed = False

    async def join(self) -> None:
        """Create topic and group where they do not exist.

        Raises:
            UnavailableError: No connection.
        """
        answer = await self._link.request(
            "POST",
            path_of("topics", self._topic),
            json={
                "group": self._group,
                "expires_after": self._expires_after,
                "member": self._member,
                "subscription": self._id,
            },
        )
        self.visibility_timeout = float(answer["visibility_timeout"])

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
        """
        while not self._closed:
            if self._rest:
                taken, self._rest = self._rest[:max_messages], self._rest[max_messages:]
                return taken
            if self._poll is None:
                self._poll = asyncio.create_task(
                    self._receive(min(max_messages, MAX_RECEIVED)), name=f"receive {self._topic}"
                )
            poll = self._poll
            await asyncio.wait([poll])
            if self._poll is poll and not poll.cancelled():
                self._poll = None
                self._rest = poll.result()
        raise ClosedError(f"the subscription to {self._topic!r} is closed; subscribe again to read on")

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_close(self)
        # The server takes everything back when the poll breaks off, so what was settled must be there before.
        await self._link.wait_settled()
        if self._poll is not None:
            self._poll.cancel()
            await asyncio.gather(self._poll, return_exceptions=True)
        self._rest = []
        try:
            await self._link.request("DELETE", path_of("subscriptions", self._id))
        except LlamaDeployError as exc:
            logger.warning("the queue was not told that a subscription ends: %s", exc)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        while True:
            opened = [
                await open_delivery(
                    partial(QueueMessage.from_wire, received["message"]),
                    attempt=received["attempt"],
                    delivery_id=received["delivery_id"],
                    settle=self._link.settle,
                )
                for received in await self._link.persist(
                    partial(self._poll_once, max_messages), give_up_at=None
                )
            ]
            deliveries: list[Delivery] = [delivery for delivery in opened if delivery is not None]
            if deliveries:
                return deliveries

    async def _poll_once(self, max_messages: int) -> list[dict[str, Any]]:
        params: dict[str, str | int | float] = {
            "group": self._group,
            "max": max_messages,
            "wait": POLL_SECONDS,
            "subscription": self._id,
        }
        if self._member is not None:
            params["member"] = self._member
        try:
            answer = await self._link.request(
                "GET", path_of("messages", self._topic), params=params, wait=POLL_SECONDS
            )
        except TopicNotFoundError:
            # The server was restarted without a journal, or the topic expired.
            await self.join()
            return []
        except InternalServerError as exc:
            raise UnavailableError(f"receiving from {self._topic!r} failed: {exc}") from exc
        received: list[dict[str, Any]] = answer["deliveries"]
        return received


def _parts(batch: Sequence[_Outgoing], positions: Sequence[int]) -> Iterator[list[int]]:
    """Cut a topic's messages into requests of a bearable size; a large message goes alone."""
    size = 0
    part: list[int] = []
    for position in positions:
        length = len(batch[position].body)
        if part and size + length > _MAX_POST_BYTES:
            yield part
            part, size = [], 0
        part.append(position)
        size += length
    yield part
