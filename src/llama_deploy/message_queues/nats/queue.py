"""The client of NATS JetStream: publishing, subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox
from nats.js import api
from nats.js import errors as js_errors

from llama_deploy.backoff import Backoff
from llama_deploy.batching import Batcher
from llama_deploy.errors import (
    ClosedError,
    LlamaDeployError,
    MessageDecodeError,
    PayloadTooLargeError,
    QueueFullError,
)
from llama_deploy.message_queues.base import (
    DEAD_LETTERS_SUFFIX,
    DEFAULT_GROUP,
    AbstractMessageQueue,
    Delivery,
    Subscription,
)
from llama_deploy.message_queues.broker_connection import Refusals
from llama_deploy.message_queues.holdings import Holdings, ours_until
from llama_deploy.message_queues.nats.config import NatsMessageQueueConfig
from llama_deploy.message_queues.nats.connection import Connection, Link
from llama_deploy.message_queues.nats.settlements import Settlement, send
from llama_deploy.message_queues.nats.wire import (
    ACK,
    NAK,
    PROGRESS,
    TERM,
    consumer_name,
    nak,
    nanoseconds,
    subject_of,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_PULL_SECONDS: Final = 60.0
"""How long one request waits at the server for a message."""
_HEARTBEAT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 12.0
"""After two heartbeats that did not come, the server has lost the request."""
_CLOSE_SECONDS: Final = 2.0
_SAME_SECONDS: Final = 0.001
_MAX_TOPICS: Final = 10_000
"""How many topics are remembered as made."""
_FULL: Final = frozenset({10023, 10047, 10077})
"""Error codes: insufficient resources, no storage left, a limit of the stream is reached."""
_TOO_LARGE: Final = 10054
"""Error code: the stream has a limit of its own for messages."""
_HEARTBEAT: Final = "100"
_NO_MESSAGES: Final = frozenset({"404", "408"})
"""Status of a request that ended while its group goes on."""


class NatsMessageQueue(AbstractMessageQueue):
    """A client of NATS JetStream, over one connection. Made by `connect`; `close` it.

    Publications at the same time share the connection and wait for their confirmations side by side.
    """

    def __init__(self, config: NatsMessageQueueConfig, link: Link) -> None:
        super().__init__()
        self.raise_exceptions = config.raise_exceptions
        self.durable = link.durable
        self.refusals = Refusals(f"NATS at {config.url}")
        self._config = config
        self._link = link
        self._subscriptions: set[_NatsSubscription] = set()
        self._burials: set[asyncio.Task[None]] = set()
        self._making = asyncio.Lock()
        self._closed = False
        self._settling: Batcher[Settlement, bool] = Batcher(
            self._settle_batch, max_batch=1024, name="NATS settler"
        )

    @classmethod
    async def connect(cls, config: NatsMessageQueueConfig) -> Self:
        """Return a client whose stream is there.

        Raises:
            UnavailableError: No server, or no JetStream, answered for `retry_seconds`.
            ConfigError: The server refuses the credentials or the stream's settings.
        """
        return cls(config, await Link.open(config))

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the stream has the message, on as many servers as it has replicas.

        Raises:
            QueueFullError: The topic holds as many messages as it may.
            PayloadTooLargeError: The message is larger than the server takes.
            SerializationError: The message holds something that is not JSON.
            UnavailableError: No server answered for `retry_seconds`. The stream may have the message.
            ConfigError: The server refuses to make the topic.
            ClosedError: The queue is closed.
        """
        self._check_open()
        await self._store(topic, message.encode(), message.id_)

    async def subscribe(
        self,
        topic: str,
        *,
        group: str = DEFAULT_GROUP,
        expires_after: float | None = None,
        member: str | None = None,  # noqa: ARG002 - a server does not know who holds what
    ) -> Subscription:
        """Join `group` of `topic`, both created if they do not exist.

        Raises:
            UnavailableError: No server answered for `retry_seconds`.
            ConfigError: The server refuses to make the group.
            ClosedError: The queue is closed.
        """
        self._check_open()
        subscription = _NatsSubscription(
            self, self._link, topic=topic, settings=self._group_settings(topic, group, expires_after)
        )
        await self._link.call(subscription.join, seconds=self._config.retry_seconds)
        self._subscriptions.add(subscription)
        if self._closed:  # while it joined
            await subscription.close()
        self._check_open()
        return subscription

    async def cleanup(self) -> None:
        """Settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await asyncio.gather(*self._burials)
        await self._settling.close()
        await self._link.close()

    def as_config(self) -> NatsMessageQueueConfig:
        """Return the settings with which another process reaches the same server."""
        return self._config

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """Send a settlement with the next ones. The future tells whether it has left; never fails."""
        try:
            return self._settling.submit_nowait(settlement)
        except LlamaDeployError as exc:
            logger.warning("a settlement is lost, its message comes back: %s", exc)
            lost: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            lost.set_result(False)
            return lost

    def bury(self, topic: str, msg: Msg) -> asyncio.Task[None]:
        """Move a message of `topic` to its dead letters; one that cannot be moved comes back."""
        burial = asyncio.create_task(self._bury(topic, msg), name=f"dead letter of {topic}")
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        return burial

    def is_spent(self, topic: str, attempt: int) -> bool:
        """Whether a message of `topic` was delivered as often as it may be. Dead letters never are."""
        return attempt >= self._config.max_deliveries and not topic.endswith(DEAD_LETTERS_SUFFIX)

    def forget(self, subscription: _NatsSubscription) -> None:
        """Note that a subscription is closed."""
        self._subscriptions.discard(subscription)

    async def ensure_topic(self, connection: Connection, topic: str) -> None:
        """Make the group `default` of a topic, which keeps its messages, unless it exists."""
        if topic in connection.topics:
            return
        async with self._making:
            settings = self._group_settings(topic, DEFAULT_GROUP, None)
            try:
                await connection.js.consumer_info(self._config.stream, str(settings.name))
            except js_errors.NotFoundError:
                await connection.js.add_consumer(self._config.stream, settings)
        if len(connection.topics) >= _MAX_TOPICS:
            connection.topics.clear()
        connection.topics.add(topic)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this NatsMessageQueue is closed; connect another with its config")

    def _group_settings(self, topic: str, group: str, expires_after: float | None) -> api.ConsumerConfig:
        name = consumer_name(topic, group)
        return api.ConsumerConfig(
            name=name,
            durable_name=name,
            filter_subject=subject_of(self._config.stream, topic),
            deliver_policy=api.DeliverPolicy.ALL if group == DEFAULT_GROUP else api.DeliverPolicy.NEW,
            ack_wait=self._config.visibility_timeout,
            max_deliver=-1,
            max_ack_pending=-1,
            inactive_threshold=expires_after,
        )

    async def _store(self, topic: str, body: bytes, id_: str) -> None:
        subject = subject_of(self._config.stream, topic)
        headers = {str(api.Header.MSG_ID.value): f"{subject}:{id_}"}

        async def store(connection: Connection) -> None:
            room = connection.client.max_payload - len(str(headers).encode())
            if len(body) > room:
                raise PayloadTooLargeError(
                    f"message {id_} has {len(body)} bytes, the NATS server takes {room}; "
                    "send less, or raise max_payload of the server",
                    limit_bytes=room,
                )
            await self.ensure_topic(connection, topic)
            try:
                await connection.js.publish(subject, body, headers=headers)
            except js_errors.APIError as exc:
                if exc.err_code in _FULL:
                    raise QueueFullError(
                        f"topic {topic!r} takes no more ({exc.description}); retry when messages are settled",
                        topic=topic,
                    ) from exc
                if exc.err_code == _TOO_LARGE:
                    raise PayloadTooLargeError(f"message {id_} has {len(body)} bytes: {exc}") from exc
                raise

        await self._link.call(store, seconds=self._config.retry_seconds)

    async def _bury(self, topic: str, msg: Msg) -> None:
        sequence, dead = msg.metadata.sequence.stream, topic + DEAD_LETTERS_SUFFIX
        retry = self._config.retry_seconds
        try:
            try:
                await self._store(dead, msg.data, f"{msg.metadata.consumer}:{sequence}")
            except QueueFullError:
                await self._link.call(lambda connection: self._make_room(connection, dead), seconds=retry)
                await self._store(dead, msg.data, f"{msg.metadata.consumer}:{sequence}")
        except LlamaDeployError as exc:
            logger.warning("a dead letter of %s could not be put aside and comes back: %s", topic, exc)
        else:
            logger.error(
                "message %d of %s became a dead letter", sequence, topic, extra={"action": "dead_letter"}
            )
            self.settle(Settlement(msg.reply, TERM))

    async def _make_room(self, connection: Connection, topic: str) -> None:
        """Drop the older half of a topic's messages."""
        subject, keep = subject_of(self._config.stream, topic), self._config.max_messages_per_topic // 2
        await connection.js.purge_stream(self._config.stream, subject=subject, keep=max(keep, 1))

    async def _settle_batch(self, batch: Sequence[Settlement]) -> list[bool]:
        try:
            sent = await self._link.call(
                lambda connection: send(connection, batch), seconds=self._config.retry_seconds
            )
        except LlamaDeployError as exc:
            logger.warning("%d settlements are lost, their messages come back: %s", len(batch), exc)
            return [False] * len(batch)
        return [each in sent for each in batch]


class _NatsSubscription(Subscription):
    """Pulls from one consumer. A `receive` that is cancelled leaves its request to the next one."""

    def __init__(
        self, queue: NatsMessageQueue, link: Link, *, topic: str, settings: api.ConsumerConfig
    ) -> None:
        self.visibility_timeout = float(settings.ack_wait or 0.0)
        self.topic = topic
        self.queue = queue
        self.held = Holdings[tuple[int, str]]()
        """What has arrived and is not settled, by sequence in the stream and reply subject."""
        self.returning: set[asyncio.Future[bool]] = set()
        """Deliveries that are given back, until the server has confirmed it."""
        self._link = link
        self._settings = settings
        self._joined = False
        self._inbox: tuple[Connection, Inbox] | None = None
        self._pull: _Pull | None = None
        self._failures = 0
        self._arrived: deque[Msg] = deque()
        self._news = asyncio.Event()
        self._closed = False

    async def join(self, connection: Connection) -> None:
        """Make topic and group where they do not exist, and give the group these settings."""
        if self._settings.deliver_policy is not api.DeliverPolicy.ALL:
            await self.queue.ensure_topic(connection, self.topic)
        await connection.js.add_consumer(self._link.stream, self._settings)
        self._joined = True

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
        """
        while not self._closed:
            pull = self._pull
            if self._arrived and (pull is None or pull.ended or len(self._arrived) >= max_messages):
                if deliveries := self._take(max_messages):
                    return deliveries
            elif pull is None:
                ask = partial(self._ask, max_messages=max_messages)
                await self.queue.refusals.outlast(partial(self._link.call, ask, seconds=None))
            elif pull.ended:
                self._pull = None
                await self._pause_after(pull)
            else:
                await self._listen(pull)
        raise ClosedError(f"the subscription to {self.topic!r} is closed; subscribe again to read on")

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        left = [
            self.queue.settle(Settlement(reply, NAK, returned=number, until=until))
            for (number, reply), until in self.held.let_all_go().items()
        ]
        if self._inbox is not None:
            connection, inbox = self._inbox
            try:
                async with connection.lasting(asyncio.get_running_loop().time() + _CLOSE_SECONDS):
                    await inbox.drain()  # type: ignore[no-untyped-call]
            except (nats.errors.Error, TimeoutError):
                logger.debug("the server has dropped the requests for %s with their connection", self.topic)
        await asyncio.gather(*left)
        self.queue.forget(self)

    async def _ask(self, connection: Connection, max_messages: int) -> None:
        """Request messages: the first to come, with those that are there with it."""
        if self._closed:
            return
        if not self._joined:
            await self.join(connection)
        if self.returning:
            await asyncio.wait(self.returning)  # they come before what is new
        if self._inbox is None or self._inbox[0] is not connection:
            subject = f"{connection.client.new_inbox()}.*"
            self._inbox = connection, await connection.client.subscribe(subject, cb=self._on_message)
        reply = self._inbox[1].subject.replace("*", generate_id())
        request = {
            "batch": max_messages,
            "no_wait": True,
            "expires": nanoseconds(_PULL_SECONDS),
            "idle_heartbeat": nanoseconds(_HEARTBEAT_SECONDS),
        }
        subject = f"{api.DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{self._link.stream}.{self._settings.name}"
        self._pull = _Pull(connection, reply, wanted=max_messages, since=asyncio.get_running_loop().time())
        await connection.client.publish(subject, json.dumps(request).encode(), reply=reply)

    async def _on_message(self, msg: Msg) -> None:
        """Take what the server sends: a message, or the status of a request."""
        pull = self._pull
        if not msg.reply:
            status = (msg.headers or {}).get(api.Header.STATUS, "")
            if pull is not None and msg.subject == pull.reply and status != _HEARTBEAT:
                pull.status, pull.ended = status, True
        else:
            until = ours_until(self.visibility_timeout, since=asyncio.get_running_loop().time())
            if self._closed:
                sequence = msg.metadata.sequence.stream
                self.queue.settle(Settlement(msg.reply, NAK, returned=sequence, until=until))
                return
            self.held.keep(_place(msg), until)
            self._arrived.append(msg)
            if pull is not None:
                pull.arrived += 1
                pull.ended = pull.ended or pull.arrived >= pull.wanted
        self._news.set()

    async def _listen(self, pull: _Pull) -> None:
        """Wait for news of a request; one of which there is none is over."""
        self._news.clear()
        try:
            async with pull.connection.lasting(asyncio.get_running_loop().time() + _SILENCE_SECONDS):
                await self._news.wait()
        except TimeoutError:
            pull.ended = True

    async def _pause_after(self, pull: _Pull) -> None:
        """Pause after a request that ended too early, which happens while the server is in a change."""
        lasted = asyncio.get_running_loop().time() - pull.since
        if pull.arrived or pull.connection.lost.done() or lasted > _PULL_SECONDS * 0.9:
            self._failures = 0
            return
        self._joined = pull.status in _NO_MESSAGES
        self._failures += 1
        await asyncio.sleep(_BACKOFF.delay(self._failures))

    def _take(self, max_messages: int) -> list[Delivery]:
        self.held.forget_the_late()
        msgs = [self._arrived.popleft() for _ in range(min(max_messages, len(self._arrived)))]
        ours = [msg for msg in msgs if self.held.until(_place(msg))]
        return [delivery for msg in ours if (delivery := self._open(msg)) is not None]

    def _open(self, msg: Msg) -> Delivery | None:
        """Return the delivery of a message, or put it aside if it is spent or no message."""
        metadata = msg.metadata
        if self.queue.is_spent(self.topic, metadata.num_delivered - 1):
            self._put_aside(msg)
            return None
        try:
            message = QueueMessage.decode(msg.data)
        except MessageDecodeError as exc:
            logger.error("message %d of %s: %s", metadata.sequence.stream, self.topic, exc)  # noqa: TRY400 - it is the message's
            self._put_aside(msg)
            return None
        return _NatsDelivery(self, msg, message)

    def _put_aside(self, msg: Msg) -> None:
        self.held.let_go(_place(msg))
        self.queue.bury(self.topic, msg)


class _NatsDelivery(Delivery):
    """A message that the server waits to hear of, on the reply subject that came with it."""

    def __init__(self, subscription: _NatsSubscription, msg: Msg, message: QueueMessage) -> None:
        self.message = message
        self.attempt = msg.metadata.num_delivered
        self._place = _place(msg)
        self._msg = msg
        self._subscription = subscription
        self._settled = False

    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""
        self._subscription.held.let_go(self._place)
        if self._settle_once():
            self._send(ACK)

    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds.

        One that was held for too long has come back already, or is about to.
        """
        until = self._subscription.held.let_go(self._place)
        if not self._settle_once() or not until:
            return
        queue, topic = self._subscription.queue, self._subscription.topic
        if queue.is_spent(topic, self.attempt):
            await asyncio.wait([queue.bury(topic, self._msg)])
        else:
            returning = self._subscription.returning
            sent = self._send(nak(delay), returned=self._place[0], until=until)
            returning.add(sent)
            sent.add_done_callback(returning.discard)

    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now before it counts as unsettled."""
        held = self._subscription.held
        if until := held.until(self._place):
            # In progress means one more visibility timeout; any other time is a redelivery that is put off.
            usual = abs(seconds - self._subscription.visibility_timeout) < _SAME_SECONDS
            longer = ours_until(seconds, since=asyncio.get_running_loop().time())
            held.keep_if(self._send(PROGRESS if usual else nak(seconds), until=until), self._place, longer)

    def _settle_once(self) -> bool:
        settled, self._settled = self._settled, True
        return not settled

    def _send(self, payload: bytes, *, returned: int = 0, until: float = math.inf) -> asyncio.Future[bool]:
        settlement = Settlement(self._msg.reply, payload, returned=returned, until=until)
        return self._subscription.queue.settle(settlement)


@dataclass(slots=True)
class _Pull:
    """One request for messages."""

    connection: Connection
    reply: str
    wanted: int
    since: float
    arrived: int = 0
    ended: bool = False
    status: str = ""
    """With which the server ended it before `wanted` messages."""


def _place(msg: Msg) -> tuple[int, str]:
    return msg.metadata.sequence.stream, msg.reply
