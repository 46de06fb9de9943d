"""The queue on Amazon SQS: publishing, and what all subscriptions share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeVar

from llama_deploy.batching import Batcher
from llama_deploy.errors import ClosedError, PayloadTooLargeError, TopicNotFoundError
from llama_deploy.message_queues.aws.config import AWSMessageQueueConfig
from llama_deploy.message_queues.aws.connection import MOST_BYTES, MOST_ENTRIES, Outcome, SqsLink
from llama_deploy.message_queues.aws.sqs_topics import Topics
from llama_deploy.message_queues.aws.subscription import SqsSubscription
from llama_deploy.message_queues.base import DEFAULT_GROUP, AbstractMessageQueue, Subscription
from llama_deploy.messages import QueueMessage

T = TypeVar("T")

_REQUESTS: Final = 10
"""How many requests with messages for one topic are under way at a time."""
_UNWRITABLE: Final = ("\ufffe", "\uffff")
"""What a message of SQS may not hold ("SendMessage", MessageBody), beside the control characters, which JSON
never holds as they are."""


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A message that waits for its publication."""

    body: str
    give_up_at: float


@dataclass(slots=True)
class _Outlet:
    """What is being published to one topic."""

    batcher: Batcher[_Outgoing, None]
    publishers: int = 0


class AWSMessageQueue(AbstractMessageQueue):
    """A queue on Amazon SQS. `connect` gives one; `close` it.

    Messages that are published at the same time travel together, and so do settlements. A settlement does
    not wait for its answer: one that is lost lets the message come back, as at-least-once means anyway.
    """

    ordered = False

    def __init__(self, config: AWSMessageQueueConfig, link: SqsLink) -> None:
        super().__init__()
        self.durable = True
        self.raise_exceptions = config.raise_exceptions
        self._config = config
        self._link = link
        self._topics = Topics(link)
        self._subscriptions: set[SqsSubscription] = set()
        self._outlets: dict[str, _Outlet] = {}
        self._chores: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def connect(cls, config: AWSMessageQueueConfig) -> Self:
        """Return a live queue, after a first question to the service.

        Raises:
            UnavailableError: The service did not answer for `retry_seconds`.
            ConfigError: There are no credentials, or the service refuses them.
        """
        queue = cls(config, await SqsLink.open(config))
        try:
            await queue._link.persist(queue._topics.learn_groups, give_up_at=queue._link.give_up_at())
        except BaseException:
            await queue.cleanup()
            raise
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the service has the message, for each group of the topic.

        Raises:
            PayloadTooLargeError: The message is larger than 1 MiB, or than the queue takes.
            SerializationError: The message holds something that is not JSON.
            UnavailableError: The service did not answer for `retry_seconds`. It may have the message.
            ConfigError: The service refuses.
            ClosedError: The queue is closed.
        """
        if self._closed:
            raise ClosedError("this AWSMessageQueue is closed; connect another with its config")
        body = message.encode()
        if len(body) > MOST_BYTES:
            raise PayloadTooLargeError(
                f"message {message.id_} has {len(body)} bytes, Amazon SQS takes {MOST_BYTES}; send less",
                limit_bytes=MOST_BYTES,
            )
        text = body.decode()
        for character in _UNWRITABLE:
            text = text.replace(character, f"\\u{ord(character):04x}")
        await self._put(topic, text)

    async def subscribe(
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        expires_after: float | None = None,
        member: str | None = None,  # noqa: ARG002 - the service does not know who holds what
    ) -> Subscription:
        """Join `group` of `topic`, both created if they do not exist.

        Making a group takes `group_seconds` and one more, after which all publishers know of it.

        Raises:
            UnavailableError: The service did not answer for `retry_seconds`.
            ConfigError: The service refuses.
            ClosedError: The queue is closed.
        """
        if self._closed:
            raise ClosedError("this AWSMessageQueue is closed; connect another with its config")
        subscription = SqsSubscription(
            self._link,
            self._topics,
            topic=topic,
            group=group,
            lifetime=expires_after,
            put=self._put,
            spawn=self._spawn,
        )
        await self._link.persist(subscription.join, give_up_at=self._link.give_up_at())
        self._subscriptions = {each for each in self._subscriptions if not each.closed} | {subscription}
        if self._closed:  # while it joined
            await subscription.close()
            raise ClosedError("this AWSMessageQueue was closed meanwhile; connect another with its config")
        if expires_after is not None:
            self._spawn(self._topics.sweep(topic), name=f"sweep beside {topic}", endless=True)
        return subscription

    async def cleanup(self) -> None:
        """Publish and settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        for task in self._endless:
            task.cancel()
        await asyncio.gather(*self._endless, return_exceptions=True)
        while self._chores:
            await asyncio.gather(*self._chores, return_exceptions=True)
        await asyncio.gather(*(outlet.batcher.close() for outlet in list(self._outlets.values())))
        await self._link.close()

    def as_config(self) -> AWSMessageQueueConfig:
        """Return the settings with which another process reaches the same queues."""
        return self._config

    async def _put(self, topic: str, body: str) -> None:
        """Publish what is a message already, together with others for the topic."""
        outlet = self._outlets.get(topic)
        if outlet is None:
            flush = partial(self._publish_batch, topic)
            most = _REQUESTS * MOST_ENTRIES
            outlet = self._outlets[topic] = _Outlet(Batcher(flush, max_batch=most, name=f"SQS {topic}"))
        outlet.publishers += 1
        try:
            await outlet.batcher.submit(_Outgoing(body, self._link.give_up_at()))
        finally:
            outlet.publishers -= 1
            if not outlet.publishers and self._outlets.get(topic) is outlet:
                del self._outlets[topic]

    async def _publish_batch(self, topic: str, batch: Sequence[_Outgoing]) -> Sequence[Outcome]:
        give_up_at = min(each.give_up_at for each in batch)
        groups = await self._link.persist(partial(self._topics.groups, topic), give_up_at=give_up_at)
        entries = [{"MessageBody": each.body} for each in batch]
        send = partial(self._link.call_batch, "send_message_batch", entries, give_up_at=give_up_at)
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
        """Do something beside; `cleanup` waits for its end, or cancels what may have none."""
        task = asyncio.create_task(work, name=name)
        tasks = self._endless if endless else self._chores
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task


async def _same(url: str) -> str:
    return url
