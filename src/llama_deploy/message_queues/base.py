"""The contract of a message queue.

A backend implements two things: `_publish`, which returns when the broker has the message, and `subscribe`,
which gives a `Subscription` whose deliveries are settled one by one. Everything else, such as running a
consumer, is written once, here, over those two.

The contract, which `llama_deploy.testing` holds as a test suite:

* At least once: a delivery that is not settled within its visibility timeout, or whose consumer dies, comes
  back. Settling twice is harmless, and whoever was too slow takes nothing from the next member; where the
  process or the connection stood still, some brokers cannot hold to that.
* Each group of a topic gets each message; within a group, each message goes to one member.
* The group `default` exists from the topic's creation and keeps what is published before anybody
  subscribes. Another group gets what is published after its first subscription.
* Order within a topic is kept where the broker keeps it (`ordered`); a message that comes back may be late.
* A message that was delivered `max_deliveries` times without an ack is put aside as a dead letter.
* Closing anything deletes nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, ClassVar, Final, Protocol, Self, TypeGuard

from pydantic_settings import BaseSettings

from llama_deploy.backoff import Backoff
from llama_deploy.errors import InvalidRequestError, SerializationError
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)

DEFAULT_GROUP: Final = "default"
DEAD_LETTERS_SUFFIX: Final = ".dead_letters"
"""Behind the name of a topic, the name of the one that holds its dead letters."""
_NACK_BACKOFF: Final = Backoff(first=0.1, longest=30.0)


def is_refused_for_good(
    error: BaseException | None,
) -> TypeGuard[InvalidRequestError | SerializationError]:
    """Return whether what `publish` has raised is the message's own fault, or that of the topic's name.

    Such a message no queue will ever take. Every other error passes: a broker comes back, a topic gets room,
    and people set passwords and permissions right. Who must not lose a message publishes it again.
    """
    return isinstance(error, InvalidRequestError | SerializationError)


class PublishCallback(Protocol):
    """Called with each message after the queue has it."""

    def __call__(self, message: QueueMessage, **kwargs: Any) -> Awaitable[None] | None:
        """Take note of a published message."""
        ...


StartConsumingCallable = Callable[[], Coroutine[Any, Any, None]]
"""Consumes until it is cancelled or its consumer is deregistered."""


class Consumer(Protocol):
    """What `register_consumer` needs of a consumer."""

    id_: str

    async def process_message(self, message: QueueMessage) -> Any:
        """Process a message: returning is the ack, raising the nack."""
        ...


class MessageQueueConfig(BaseSettings, ABC):
    """Settings of a backend, and the way to a live queue from them."""

    credential_fields: ClassVar[frozenset[str]] = frozenset()
    """The fields that hold credentials. They never leave the process."""

    @abstractmethod
    async def connect(self) -> AbstractMessageQueue:
        """Return a live queue.

        Raises:
            UnavailableError: The broker does not answer.
            ConfigError: The settings cannot work, or the backend's package is not installed.
        """

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return settings from a URL whose scheme is a name of the backend.

        What the URL says goes before the environment; the rest is as if there were no URL.

        Raises:
            ValueError: The URL cannot work. The text shows nothing of it.
        """
        fields: dict[str, Any] = {**dict.fromkeys(cls.said_by(url)), "url": url}
        return cls(**fields)

    @classmethod
    def said_by(cls, url: str) -> set[str]:  # noqa: ARG003 - for those that override it
        """Return the names of the fields that `url` says; for these `from_url` leaves the environment out.

        Raises:
            ValueError: The URL cannot work.
        """
        return set()

    @property
    def address(self) -> str:
        """Where the broker is, for people to read: a URL without credentials, or else the backend's name."""
        settings = self.public_settings()
        return str(settings.get("url") or settings.get("type"))

    def public_settings(self) -> dict[str, Any]:
        """Return the settings as JSON without any credentials, for `GET /queue_config`."""
        return self.model_dump(mode="json", exclude=set(self.credential_fields))

    def private_settings(self) -> dict[str, Any]:
        """Return the credentials among the settings, without those that are None."""
        values = {name: getattr(self, name) for name in self.credential_fields}
        return {name: value for name, value in values.items() if value is not None}


class Delivery(ABC):
    """A message in the hands of one consumer, to be settled by exactly one of `ack` and `nack`."""

    message: QueueMessage
    attempt: int
    """How often the message was delivered to this group, this time included; from 1."""

    @abstractmethod
    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""

    @abstractmethod
    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds.

        Harmless when settled before.
        """

    @abstractmethod
    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now before it counts as unsettled."""


class Subscription(ABC):
    """One member of a group, reading one topic. Use it with `async with`, or call `close`."""

    visibility_timeout: float = 30.0
    """Seconds after which a delivery that is neither settled nor extended comes back."""

    @abstractmethod
    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Takes no more than `max_messages` from the broker, so that what one member cannot work on stays
        for the others. Survives a lost connection by connecting again, and goes on trying while the broker
        refuses what it has granted before, such as a password that is being changed.

        Returns:
            Between one and `max_messages` deliveries, in the topic's order.

        Raises:
            ClosedError: The subscription is closed.
            ConfigError: The broker has never let it read, and refuses to.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class AbstractMessageQueue(ABC):
    """A live connection to a message queue. `close` it, or use it with `async with`."""

    ordered: ClassVar[bool] = True
    """Whether messages of a topic arrive in the order in which they were published."""
    has_groups: ClassVar[bool] = True
    """Whether a topic can have several groups."""
    durable: bool = False
    """Whether what `publish` accepted survives the death of the broker."""
    raise_exceptions: bool = False
    """Whether a consumer's error ends its `start_consuming`, which raises it after the nack."""

    def __init__(self) -> None:
        self._consumers: dict[str, asyncio.Event] = {}

    async def publish(
        self, message: QueueMessage, topic: str, callback: PublishCallback | None = None, **kwargs: Any
    ) -> None:
        """Hand `message` to the broker; returns when the broker has it.

        Messages that one caller publishes one after the other keep their order.

        Args:
            message: The message.
            topic: Created if it does not exist.
            callback: Called after the broker has the message, with `kwargs`.
            **kwargs: Handed to `callback`.

        Raises:
            QueueFullError: The topic holds as many messages as it may.
            SerializationError: The message holds something that is not JSON.
            PayloadTooLargeError: The message is larger than the broker takes.
            InvalidRequestError: Not a topic's name.
            ConfigError: The broker refuses the credentials or a permission; people may set that right. See
                `is_refused_for_good`.
            UnavailableError: The broker does not answer.
            ClosedError: This connection is closed.
        """
        await self._publish(message, topic)
        if callback is not None:
            done = callback(message, **kwargs)
            if inspect.isawaitable(done):
                await done

    @abstractmethod
    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Hand `message` to the broker; `publish` tells the rest."""

    @abstractmethod
    async def subscribe(
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        expires_after: float | None = None,
        member: str | None = None,
    ) -> Subscription:
        """Join `group` of `topic`, both created if they do not exist.

        Args:
            topic: The topic.
            group: The members of a group share the topic's messages.
            expires_after: Seconds after which the broker may drop the whole topic when nobody has read it,
                for topics that only one process can read. None: never.
            member: Names this member of the group, for one that starts again under its old name: what an
                earlier member of the name has not settled comes back at once. None: nobody's successor.

        Raises:
            InvalidRequestError: Not the name of a topic or a group.
            ConfigError: The broker refuses the credentials or a permission.
            UnavailableError: The broker does not answer.
            ClosedError: This connection is closed.
        """

    @abstractmethod
    async def cleanup(self) -> None:
        """Settle or hand back what is under way and close. Deletes no topics, queues or data. Idempotent."""

    @abstractmethod
    def as_config(self) -> MessageQueueConfig:
        """Return settings with which another process reaches the same broker."""

    async def close(self) -> None:
        """The same as `cleanup`."""
        await self.cleanup()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def register_consumer(
        self, consumer: Consumer, topic: str, *, group: str = DEFAULT_GROUP, concurrency: int = 1
    ) -> StartConsumingCallable:
        """Join `topic` for `consumer`.

        Args:
            consumer: Its `process_message` is called with each message.
            topic: The topic.
            group: The group to join.
            concurrency: The most messages that are processed at a time; 1 keeps their order.

        Returns:
            A callable that consumes until it is cancelled or the consumer is deregistered.
        """
        subscription = await self.subscribe(topic, group=group)
        stop = asyncio.Event()
        self._consumers[consumer.id_] = stop

        async def start_consuming() -> None:
            async with subscription:
                await _Consuming(
                    subscription, consumer, concurrency=concurrency, raise_exceptions=self.raise_exceptions
                ).run_until(stop)

        return start_consuming

    async def deregister_consumer(self, consumer: Consumer) -> None:
        """Stop consuming for `consumer` after the messages under way. Unknown consumers are ignored."""
        stop = self._consumers.pop(consumer.id_, None)
        if stop is not None:
            stop.set()


class _Consuming:
    """Feeds one consumer from one subscription."""

    def __init__(
        self, subscription: Subscription, consumer: Consumer, *, concurrency: int, raise_exceptions: bool
    ) -> None:
        self._subscription = subscription
        self._consumer = consumer
        self._concurrency = concurrency
        self._raise_exceptions = raise_exceptions
        self._running: set[asyncio.Task[None]] = set()

    async def run_until(self, stop: asyncio.Event) -> None:
        """Feed the consumer until `stop` is set, then wait for the messages under way.

        Cancelling cancels them instead; they go back to the group.
        """
        stopping = asyncio.create_task(stop.wait())
        receiving: asyncio.Task[list[Delivery]] | None = None
        try:
            while not stop.is_set():
                room = self._concurrency - len(self._running)
                if receiving is None and room > 0:
                    receiving = asyncio.create_task(self._subscription.receive(room))
                waiting = [task for task in (stopping, receiving, *self._running) if task is not None]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
                if receiving is not None and receiving.done():
                    deliveries, receiving = receiving.result(), None
                    self._running |= {asyncio.create_task(self._process(each)) for each in deliveries}
            if self._running:
                await asyncio.wait(self._running)
                self._reap()
        finally:
            tasks = [task for task in (stopping, receiving, *self._running) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reap(self) -> None:
        """Forget the tasks that have ended; raise what one of them raised."""
        ended = {task for task in self._running if task.done()}
        self._running -= ended
        for task in ended:
            task.result()

    async def _process(self, delivery: Delivery) -> None:
        """Process one delivery and settle it."""
        try:
            async with self._kept(delivery):
                await self._consumer.process_message(delivery.message)
        except Exception:
            logger.warning(
                "consumer %s failed on message %s (delivery %d); it goes back to the queue",
                self._consumer.id_,
                delivery.message.id_,
                delivery.attempt,
                exc_info=True,
                extra={"action": "nack", "message_id": delivery.message.id_},
            )
            await delivery.nack(delay=nack_delay(delivery.attempt))
            if self._raise_exceptions:
                raise
        else:
            await delivery.ack()

    @asynccontextmanager
    async def _kept(self, delivery: Delivery) -> AsyncIterator[None]:
        """Extend a delivery while its processing lasts, so that slow work is not given to another member."""
        keeping = asyncio.create_task(self._keep(delivery))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, delivery: Delivery) -> None:
        seconds = self._subscription.visibility_timeout
        while True:
            await asyncio.sleep(seconds / 3)
            try:
                await delivery.extend(seconds)
            except Exception as exc:  # noqa: BLE001 - whatever failed, the next try may reach the broker in time
                logger.warning(
                    "message %s could not be kept, another consumer may get it too: %r",
                    delivery.message.id_,
                    exc,
                    extra={"action": "extend_failed", "message_id": delivery.message.id_},
                )


def nack_delay(attempt: int) -> float:
    """Return the seconds before a failed message is tried again: 0.1, doubled a delivery, at most 30."""
    return _NACK_BACKOFF.delay(attempt)
