"""The contract of a message queue.

A backend writes three classes. Its queue publishes, subscribes and disconnects; its subscription receives;
its delivery is acknowledged, returned or extended. The methods to write begin with an underscore. The public
methods call them, check what is closed and drain publications at the end, once for all backends.

The contract, which `llama_deploy.testing` holds as a test suite:

* At least once: a delivery that is not settled within its visibility timeout, or whose consumer dies, comes
  back. Settling twice is harmless. A late settlement takes nothing from the next member; where the process or
  the connection stood still, some brokers cannot guarantee that.
* Each group of a topic gets each message; within a group, each message goes to one member.
* The group `default` exists from the topic's creation and keeps what is published before the first
  subscription. Another group gets what is published after its first subscription.
* Order within a topic is kept where the broker keeps it; a message that comes back may be late.
* A message that was delivered `max_deliveries` times without an ack becomes a dead letter.
* Closing anything deletes nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self, TypeGuard

from pydantic_settings import BaseSettings, SettingsConfigDict

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.concurrency.closing import AsyncCloseable
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    InvalidRequestError,
    LlamaDeployError,
    SerializationError,
    UnavailableError,
)
from llama_deploy.message_queues.consumer_loop import ConsumerLoop
from llama_deploy.messages import QueueMessage
from llama_deploy.renamed import old_names

DEFAULT_GROUP: Final = "default"
DEAD_LETTERS_SUFFIX: Final = ".dead_letters"
"""Appended to the name of a topic, the name of the topic that holds its dead letters."""


def is_refused_for_good(
    error: BaseException | None,
) -> TypeGuard[InvalidRequestError | SerializationError]:
    """Return whether an error of `publish` is the fault of the message or of the topic's name.

    No queue will ever take such a message. Every other error is transient: a broker comes back, a topic gets
    room, and people correct passwords and permissions. To lose no message, publish it again.
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
    """Settings of a backend. `connect` opens a queue with them."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    credential_fields: ClassVar[frozenset[str]] = frozenset()
    """The fields that hold credentials. They never leave the process."""
    raise_exceptions: bool = False
    """An error in a consumer ends `start_consuming`, which raises it, after the message went back to the
    queue. False: the error is logged, and consuming continues."""

    @abstractmethod
    async def connect(self) -> AbstractMessageQueue:
        """Return a live queue.

        Raises:
            UnavailableError: The broker does not answer.
            ConfigError: The broker refuses the settings, such as the credentials, or the backend's package is
                not installed.
        """

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Return settings from a URL whose scheme is a name of the backend.

        What the URL says takes precedence over the environment; the environment supplies the rest.

        Raises:
            ValueError: The URL is not valid. The text shows nothing of it.
        """
        fields: dict[str, Any] = {**dict.fromkeys(cls.fields_set_by(url)), "url": url}
        return cls(**fields)

    @classmethod
    def fields_set_by(cls, url: str) -> set[str]:  # noqa: ARG003 - for those that override it
        """Return the names of the fields for which `url` is used instead of the environment.

        Raises:
            ValueError: The URL is not valid.
        """
        return set()

    @property
    def address(self) -> str:
        """Where the broker is, for people to read: a URL without credentials, or else the backend's name."""
        settings = self.public_settings()
        return str(settings.get("url") or settings.get("type"))

    def public_settings(self) -> dict[str, Any]:
        """Return the JSON settings with which another process reaches the queue, without credentials."""
        return self.model_dump(mode="json", exclude={*self.credential_fields, "raise_exceptions"})

    def private_settings(self) -> dict[str, Any]:
        """Return the credentials among the settings, without those that are None."""
        values = {name: getattr(self, name) for name in self.credential_fields}
        return {name: value for name, value in values.items() if value is not None}


class Delivery(ABC):
    """A message handed to one consumer, which settles it with exactly one of `ack` and `nack`.

    Args:
        message: The message.
        attempt: How often the message was delivered to this group, this time included; from 1.
    """

    def __init__(self, message: QueueMessage, *, attempt: int) -> None:
        self.message = message
        self.attempt = attempt
        self.is_settled = False
        """Whether it was acknowledged, returned, or taken back. Settling it again does nothing."""

    async def ack(self) -> None:
        """Acknowledge: the work is done and the message does not come back. Idempotent."""
        if not self.is_settled:
            self.is_settled = True
            await self._ack()

    async def nack(self, delay: float = 0.0) -> None:
        """Return the message to its group, which gets it again after `delay` seconds. Idempotent."""
        if not self.is_settled:
            self.is_settled = True
            await self._nack(delay)

    async def extend(self, seconds: float) -> None:
        """Set the visibility timeout to `seconds` from now. Does nothing if it is settled."""
        if not self.is_settled:
            await self._extend(seconds)

    @abstractmethod
    async def _ack(self) -> None:
        """Acknowledge, called at most once. Never raises: what is not settled comes back."""

    @abstractmethod
    async def _nack(self, delay: float) -> None:
        """Return the message, called at most once. Never raises."""

    @abstractmethod
    async def _extend(self, seconds: float) -> None:
        """Extend the visibility timeout. Never raises."""


class Subscription(AsyncCloseable):
    """One member of a group, reading one topic. Use it with `async with`, or call `close`.

    Args:
        topic: The topic.
        visibility_timeout: Seconds after which a delivery that is neither settled nor extended comes back.
    """

    def __init__(self, topic: str, *, visibility_timeout: float) -> None:
        self.topic = topic
        self.visibility_timeout = visibility_timeout
        self.closed = False
        self._closing = asyncio.Lock()

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Takes no more than `max_messages` from the broker: what one member has no capacity for stays for the
        others. Reconnects after a lost connection, and retries while the broker refuses what it has granted
        before, such as a password that is being changed. Cancelling it loses nothing.

        Returns:
            Between one and `max_messages` deliveries, in the topic's order.

        Raises:
            ClosedError: The subscription is closed.
            ConfigError: The broker has never let it read, and refuses to.
        """
        while not self.closed:
            deliveries = await self._receive(max_messages)
            if deliveries and not self.closed:
                return deliveries
        raise ClosedError(f"the subscription to {self.topic!r} is closed; subscribe again to read on")

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group. Idempotent."""
        async with self._closing:
            if not self.closed:
                self.closed = True
                await self._close()

    @abstractmethod
    async def _receive(self, max_messages: int) -> list[Delivery]:
        """Wait for messages. `receive` calls again after an empty list, and ends when `closed` is set."""

    @abstractmethod
    async def _close(self) -> None:
        """Wake `_receive`, return the unsettled deliveries and free what is held; called once."""


class AbstractMessageQueue(AsyncCloseable):
    """A live connection to a message queue. `close` it, or use it with `async with`.

    A subclass implements `_publish`, `_subscribe` and `_disconnect`. Or, as one that was written for 0.6,
    `_publish`, `register_consumer`, `deregister_consumer`, `cleanup` and `as_config`; such a class need not
    call this constructor. Subscriptions are then made of its consumers, see `ConsumerSubscription`.

    Args:
        config: Settings with which another process reaches the same broker. None: `as_config` is overridden.
    """

    durable: bool = False
    """Whether what `publish` accepted survives the death of the broker."""
    ordered: bool = False
    """Whether a topic delivers its messages in the order of their publication, unless they come back."""
    # Here and not in the constructor, because classes of 0.6 do not call it.
    _publishing = 0
    _closed = False

    def __init__(self, config: MessageQueueConfig | None = None) -> None:
        if config is not None:
            self._settings = config

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Add what a class that was written for 0.6 does not have."""
        super().__init_subclass__(**arguments)
        if "register_consumer" in vars(cls) and cls._subscribe is AbstractMessageQueue._subscribe:
            additions = {
                "_publish": _translating(cls._publish),
                "_subscribe": _subscribe_as_consumer,
                "_disconnect": _disconnect_nothing,
            }
            for name, function in additions.items():
                setattr(cls, name, function)

    # Made when they are needed, for the same reason.
    @cached_property
    def _stops(self) -> dict[str, asyncio.Event]:
        return {}

    @cached_property
    def _open_subscriptions(self) -> set[Subscription]:
        return set()

    @property
    def folder(self) -> Path | None:
        """The folder of this machine in which this process itself keeps messages. None: there is none."""
        return None

    @property
    def problem(self) -> str | None:
        """Why the broker is known not to answer, None if it answers or has not been used. Asks nobody.

        Readable in every thread.
        """
        return None

    @cached_property
    def _idle(self) -> asyncio.Event:
        return asyncio.Event()

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
            QueueFullError: The topic is full.
            SerializationError: The message holds something that is not JSON.
            PayloadTooLargeError: The message is larger than the broker takes.
            InvalidRequestError: The topic's name is not valid.
            ConfigError: The broker refuses the credentials or a permission; people may correct that. See
                `is_refused_for_good`.
            UnavailableError: The broker does not answer. It may have the message.
            ClosedError: This connection is closed.
        """
        self._check_open()
        self._publishing += 1
        message.stats.publish_time = message.stats.timestamp_str()
        try:
            await self._publish(message, topic)
        finally:
            self._publishing -= 1
            if not self._publishing:
                self._idle.set()
        if callback is not None:
            done = callback(message, **kwargs)
            if inspect.isawaitable(done):
                await done

    async def subscribe(
        self, topic: str, *, group: str = DEFAULT_GROUP, expires_after: float | None = None
    ) -> Subscription:
        """Join `group` of `topic`; both are created if they do not exist.

        Args:
            topic: The topic.
            group: The members of a group share the topic's messages.
            expires_after: Seconds without a reader after which the broker may drop the whole topic, for
                topics that only one process can read. None: never.

        Raises:
            InvalidRequestError: The name of the topic or of the group is not valid.
            ConfigError: The broker refuses the credentials or a permission.
            UnavailableError: The broker does not answer.
            ClosedError: This connection is closed.
        """
        self._check_open()
        subscription = await self._subscribe(topic, group=group, expires_after=expires_after)
        ended = [each for each in self._open_subscriptions if each.closed]
        self._open_subscriptions.difference_update(ended)
        self._open_subscriptions.add(subscription)
        if self._closed:  # while it joined
            await subscription.close()
        self._check_open()
        return subscription

    async def check(self) -> None:
        """Check that the broker takes messages now, with one short request that is not retried.

        A queue that does not override `_check` only checks that it is open.

        Raises:
            ClosedError: This connection is closed.
            UnavailableError: The broker does not answer, or takes no messages; the text says why.
            ConfigError: It refuses the credentials or a permission.
        """
        self._check_open()
        await self._check()

    async def cleanup(self) -> None:
        """Return what is unsettled, wait for the publications in flight, and disconnect.

        Deletes no topics, queues or data. Idempotent.
        """
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._open_subscriptions))
        while self._publishing:
            self._idle.clear()
            await self._idle.wait()
        await self._disconnect()

    def as_config(self) -> MessageQueueConfig:
        """Return settings with which another process reaches the same broker."""
        return self._settings

    async def close(self) -> None:
        """The same as `cleanup`."""
        await self.cleanup()

    @abstractmethod
    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Hand `message` to the broker, as `publish` describes."""

    async def _check(self) -> None:
        """Ask the broker for an answer, as `check` describes. It is given a few seconds."""

    @abstractmethod
    async def _subscribe(self, topic: str, *, group: str, expires_after: float | None) -> Subscription:
        """Join a group, as `subscribe` describes."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Free the connections. Subscriptions are closed and publications have ended. Idempotent."""

    async def register_consumer(
        self, consumer: Consumer, topic: str, *, group: str = DEFAULT_GROUP, concurrency: int = 1
    ) -> StartConsumingCallable:
        """Join `topic` for `consumer`.

        Args:
            consumer: Its `process_message` is called with each message.
            topic: The topic.
            group: The group to join.
            concurrency: How many messages are processed at the same time at most; 1 keeps their order.

        Returns:
            A callable that consumes until it is cancelled or the consumer is deregistered.
        """
        subscription = await self.subscribe(topic, group=group)
        stop = asyncio.Event()
        self._stops[consumer.id_] = stop

        @ends_quietly
        async def start_consuming() -> None:
            async with subscription:
                consuming = ConsumerLoop(
                    subscription,
                    consumer,
                    concurrency=concurrency,
                    raise_exceptions=self._settings.raise_exceptions,
                )
                await consuming.run_until(stop)

        return start_consuming

    async def deregister_consumer(self, consumer: Consumer) -> None:
        """Stop consuming for `consumer` after the messages in progress. Unknown consumers are ignored."""
        stop = self._stops.pop(consumer.id_, None)
        if stop is not None:
            stop.set()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} is closed; connect another with its config")


def _translating(publish: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[None]]:
    """Return `_publish` of a queue that was written for 0.6, with errors of the project."""

    @wraps(publish)
    async def translated(queue: AbstractMessageQueue, message: QueueMessage, topic: str) -> None:
        try:
            await publish(queue, message, topic)
        except LlamaDeployError:
            raise
        except Exception as exc:
            raise UnavailableError(f"publishing to {topic!r} has failed: {exc!r}") from exc

    return translated


async def _subscribe_as_consumer(
    queue: AbstractMessageQueue, topic: str, *, group: str, expires_after: float | None
) -> Subscription:
    """Join a topic as a consumer of a queue that was written for 0.6."""
    del expires_after
    # It is a subscription, so it cannot stand above.
    from llama_deploy.message_queues.consumer_subscription import ConsumerSubscription  # noqa: PLC0415

    if group != DEFAULT_GROUP:
        raise ConfigError(
            f"{type(queue).__name__} was written for 0.6 and does not have groups, such as {group!r};"
            " implement `_subscribe`, see docs/how-to/custom-queue.md"
        )
    subscription = ConsumerSubscription(topic)
    join = partial(queue.register_consumer, subscription, topic)
    try:
        start_consuming = await join()
    except Exception as exc:
        raise UnavailableError(f"the queue cannot register a consumer of topic {topic!r}: {exc!r}") from exc
    subscription.begin(start_consuming, join=join, leave=partial(queue.deregister_consumer, subscription))
    return subscription


async def _disconnect_nothing(queue: AbstractMessageQueue) -> None:
    """A queue that was written for 0.6 disconnects in its own `cleanup`."""
    del queue


__getattr__ = old_names(__name__)
