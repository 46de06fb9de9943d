"""The queue on Amazon SQS: publishing, subscribing and the tasks in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from llama_deploy.concurrency.batching import Batcher
from llama_deploy.concurrency.retrying import Outage
from llama_deploy.errors import PayloadTooLargeError, TopicNotFoundError
from llama_deploy.message_queues.aws.config import AWSMessageQueueConfig
from llama_deploy.message_queues.aws.connection import MAX_BYTES, MAX_ENTRIES, Outcome, SqsConnection
from llama_deploy.message_queues.aws.reader import SqsReader
from llama_deploy.message_queues.aws.subscription import SqsSubscription
from llama_deploy.message_queues.aws.topics import SqsTopics
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.broker_queue import BrokerQueue, Publication
from llama_deploy.message_queues.remembering import remember
from llama_deploy.messages import QueueMessage

T = TypeVar("T")

_REQUESTS: Final = 10
"""How many requests with messages for one topic are in flight at a time."""
_UNWRITABLE: Final = ("\ufffe", "\uffff")
"""What a message of SQS may not hold ("SendMessage", MessageBody), in addition to the control characters,
which JSON always escapes."""


class AWSMessageQueue(BrokerQueue):
    """A queue on Amazon SQS. `connect` gives one; `close` it.

    Messages that are published at the same time travel together, and so do settlements.
    """

    durable = True

    def __init__(self, config: AWSMessageQueueConfig | None = None) -> None:
        config = config or AWSMessageQueueConfig()
        super().__init__(config)
        self._connection = SqsConnection(config)
        self._topics = SqsTopics(self._connection)
        self._batchers: dict[str, Batcher[Publication, None]] = {}
        """By topic."""
        self._chores: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()

    async def _connect(self) -> None:
        await self._connection.open()
        await self._connection.retry(self._topics.load_groups)

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the service has the message, for each group of the topic."""
        body = message.encode()
        if len(body) > MAX_BYTES:
            raise PayloadTooLargeError(
                f"message {message.id_} has {len(body)} bytes, Amazon SQS takes {MAX_BYTES}; send less",
                limit_bytes=MAX_BYTES,
            )
        for character in _UNWRITABLE:
            body = body.replace(character.encode(), f"\\u{ord(character):04x}".encode())
        await self._put(topic, body)

    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        """Creating a group takes `group_seconds` and one more, after which all publishers know of it."""
        reader = SqsReader(self._connection, self._topics, topic=topic, group=group, lifetime=expires_after)
        await self._connection.retry(reader.join)
        if expires_after is not None:
            self._spawn(self._topics.sweep(topic), name=f"sweep next to {topic}", endless=True)
        return SqsSubscription(self._connection, reader, topic=topic, put=self._put, spawn=self._spawn)

    def _outages(self) -> Sequence[Outage]:
        return [self._connection.outage]

    async def _check(self) -> None:
        await self._topics.ping()

    async def _disconnect(self) -> None:
        for task in self._endless:
            task.cancel()
        await asyncio.gather(*self._endless, return_exceptions=True)
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))
        await self._connection.close()

    async def _put(self, topic: str, body: bytes) -> None:
        """Publish an encoded message, together with others for the topic."""
        batcher = self._batchers.get(topic)
        if batcher is None:
            flush = partial(self._publish_batch, topic)
            batcher = Batcher(flush, max_batch=_REQUESTS * MAX_ENTRIES, name=f"SQS {topic}")
            remember(self._batchers, topic, batcher)
        await batcher.submit(Publication(topic, body, self._connection.give_up_at()))

    async def _publish_batch(self, topic: str, batch: Sequence[Publication]) -> Sequence[Outcome]:
        give_up_at = min(each.give_up_at for each in batch)
        groups = await self._connection.retry(partial(self._topics.groups, topic), give_up_at=give_up_at)
        entries = [{"MessageBody": each.body.decode()} for each in batch]
        send = partial(self._connection.call_batch, "send_message_batch", entries, give_up_at=give_up_at)
        outcomes, *others = await asyncio.gather(
            send(url=partial(self._topics.url, topic), forget=partial(self._topics.forget, topic)),
            *(send(url=partial(_same, url)) for url in groups),
        )
        for of_group in others:
            if any(isinstance(outcome, TopicNotFoundError) for outcome in of_group):
                self._topics.forget_groups()  # somebody has removed it
                continue
            outcomes = [own or other for own, other in zip(outcomes, of_group, strict=True)]
        return outcomes

    def _spawn(self, work: Coroutine[Any, Any, T], *, name: str, endless: bool = False) -> asyncio.Task[T]:
        """Start a background task; the end of the queue waits for it, or cancels it if it is endless."""
        task = asyncio.create_task(work, name=name)
        tasks = self._endless if endless else self._chores
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task


async def _same(url: str) -> str:
    return url
