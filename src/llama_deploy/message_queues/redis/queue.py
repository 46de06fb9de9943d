"""The queue on Redis: publishing, subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Self
from urllib.parse import quote
from weakref import WeakValueDictionary

from llama_deploy.batching import Batcher
from llama_deploy.errors import (
    ClosedError,
    ConfigError,
    LlamaDeployError,
    MessageDecodeError,
    QueueFullError,
    TopicNotFoundError,
    UnavailableError,
)
from llama_deploy.message_queues.base import (
    DEAD_LETTERS_SUFFIX,
    DEFAULT_GROUP,
    AbstractMessageQueue,
    Delivery,
    Subscription,
)
from llama_deploy.message_queues.redis.config import RedisMessageQueueConfig
from llama_deploy.message_queues.redis.connection import RedisLink
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_ACK_SECONDS: Final = 0.01
"""How long acknowledgements gather: nobody waits for them, and each request costs both sides."""
_BATCH_BYTES: Final = 1024 * 1024
"""Messages that are published at the same time share a request up to this size."""
_MAX_SECONDS: Final = 7 * 24 * 3600.0
"""The longest delay or extension."""
_PATIENCE_MS: Final = 3600 * 1000
"""The server forgets members that hold nothing and were not seen for so long."""
_NEVER: Final = 2**53
_UNBLOCK_TRIES: Final = 20


@dataclass(frozen=True, slots=True)
class _Outgoing:
    """A message that waits for its publication."""

    topic: str
    body: bytes
    give_up_at: float


@dataclass(frozen=True, slots=True)
class _Settlement:
    """What a member says about a delivery; `reject` makes it a dead letter at once."""

    wish: Literal["ack", "nack", "extend", "reject"]
    entry: str
    attempt: int
    milliseconds: int = 0


class RedisMessageQueue(AbstractMessageQueue):
    """A queue on one server. `connect` gives one; `close` it.

    Messages that are published at the same time travel together, and so do settlements. A settlement does
    not wait for its answer: one that is lost lets the message come back, as at-least-once means anyway.
    """

    def __init__(self, config: RedisMessageQueueConfig) -> None:
        super().__init__()
        self.raise_exceptions = config.raise_exceptions
        self._config = config
        self._link = RedisLink(config)
        self._subscriptions: set[_RedisSubscription] = set()
        self._closed = False
        self._publishing: Batcher[_Outgoing, None] = Batcher(
            self._publish_batch, max_batch=512, name="redis publisher"
        )

    @classmethod
    async def connect(cls, config: RedisMessageQueueConfig) -> Self:
        """Return a live queue, after a look at how the server is set up.

        Raises:
            UnavailableError: The server did not answer for `retry_seconds`.
            ConfigError: The server refuses the credentials, or is too old.
        """
        queue = cls(config)
        link = queue._link
        try:
            queue.durable = await link.persist(link.inspect, give_up_at=link.give_up_at())
        except BaseException:
            await queue.cleanup()
            raise
        return queue

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        """Returns when the server has the message, in its append-only file if there is one."""
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
        subscription = _RedisSubscription(
            self._link, topic=topic, group=group, expires_after=expires_after, member=member
        )
        await self._link.persist(subscription.join, give_up_at=self._link.give_up_at())
        self._subscriptions = {each for each in self._subscriptions if not each.closed} | {subscription}
        if self._closed:  # while it joined
            await subscription.close()
        self._check_open()
        return subscription

    async def cleanup(self) -> None:
        """Publish and settle what waits, hand back the rest, and close. Idempotent; deletes nothing."""
        self._closed = True
        await asyncio.gather(*(subscription.close() for subscription in self._subscriptions))
        await self._publishing.close()
        await self._link.close()

    def as_config(self) -> RedisMessageQueueConfig:
        """Return the settings with which another process reaches the same server."""
        return self._config

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this RedisMessageQueue is closed; connect another with its config")

    async def _publish_batch(self, batch: Sequence[_Outgoing]) -> list[BaseException | None]:
        outcomes: list[BaseException | None] = []
        for part in _parts(batch):
            outcomes += await self._publish_part(part)
        return outcomes

    async def _publish_part(self, part: Sequence[_Outgoing]) -> list[BaseException | None]:
        try:
            return await self._link.persist(
                partial(self._add, part), give_up_at=min(each.give_up_at for each in part)
            )
        except LlamaDeployError as exc:
            topics = {each.topic for each in part}
            if len(topics) == 1 or not isinstance(exc, ConfigError):
                return [exc] * len(part)
        # It was refused as a whole; alone, each topic gets its own verdict.
        verdicts = {
            topic: iter(await self._publish_part([each for each in part if each.topic == topic]))
            for topic in topics
        }
        return [next(verdicts[each.topic]) for each in part]

    async def _add(self, part: Sequence[_Outgoing]) -> list[BaseException | None]:
        topics = list(dict.fromkeys(each.topic for each in part))
        numbers = {topic: number for number, topic in enumerate(topics, start=1)}
        most = self._config.max_messages_per_topic
        messages = [argument for each in part for argument in (numbers[each.topic], each.body)]
        try:
            taken = await self._link.run("publish", [_stream(topic) for topic in topics], most, *messages)
        except QueueFullError as exc:
            return [QueueFullError(f"topic {each.topic!r}: {exc}", topic=each.topic) for each in part]
        full = "topic {!r} holds {} messages and takes no more; retry when some are settled"
        return [
            None if is_taken else QueueFullError(full.format(each.topic, most), topic=each.topic)
            for each, is_taken in zip(part, taken, strict=True)
        ]


class _RedisSubscription(Subscription):
    """Reads one topic. A `receive` that is cancelled leaves its wait to the next one.

    To break off a read could lose an answer that is on its way, until its visibility timeout.
    """

    def __init__(
        self, link: RedisLink, *, topic: str, group: str, expires_after: float | None, member: str | None
    ) -> None:
        self.visibility_timeout = link.config.visibility_timeout
        self.closed = False
        self._link = link
        self._topic = topic
        self._group = group
        self._lifetime = expires_after or 0.0
        self._kin = f"{quote(member, safe='')}:" if member else ""
        self._consumer = self._kin + generate_id()
        self._keys = _keys(topic, group)
        endless = topic.endswith(DEAD_LETTERS_SUFFIX)
        self._bounds = (_NEVER if endless else link.config.max_deliveries, link.config.max_dead_letters)
        self._round = 2 * link.config.timeout
        self._reader = link.client(patience=self._round)
        self._reader_id: int | None = None
        """By which the server knows the connection; None: what became of the last answer is not known."""
        self._claim_at = 0.0
        self._has_claimed = False
        """Whether the server has ever let it; if not, its user lacks a permission."""
        self._in_hand: WeakValueDictionary[str, _RedisDelivery] = WeakValueDictionary()
        self._poll: asyncio.Task[list[Delivery]] | None = None
        self._rest: list[Delivery] = []
        self._closing = asyncio.Lock()
        batcher = partial(Batcher[_Settlement, None], self._settle_batch, max_batch=512)
        self._settling = batcher(name="redis settler")
        self._acking = batcher(gather_seconds=_ACK_SECONDS, name="redis acker")
        self._last: dict[Batcher[_Settlement, None], asyncio.Future[None]] = {}

    async def join(self, start: str = "$") -> None:
        """Create topic and group where they do not exist; take over from who had the name before.

        Args:
            start: Where a new group begins: `$`, the end of the topic, or `0`.
        """
        await self._run("join", start, self._kin, _PATIENCE_MS)

    async def receive(self, max_messages: int) -> list[Delivery]:
        """Wait until there is a message, then return it with the others that are there at once.

        Raises:
            ClosedError: The subscription is closed.
            ConfigError: The server has never let it read, and refuses to.
        """
        while not self.closed:
            if self._rest:
                taken, self._rest = self._rest[:max_messages], self._rest[max_messages:]
                return taken
            if self._poll is None:
                self._poll = asyncio.create_task(self._receive(max_messages), name=f"receive {self._topic}")
            poll = self._poll
            await asyncio.wait([poll])
            if self._poll is poll and not poll.cancelled():
                self._poll = None
                self._rest = poll.result()
        raise ClosedError(f"the subscription to {self._topic!r} is closed; subscribe again to read on")

    async def close(self) -> None:
        """Stop reading. Unsettled deliveries come back to the group at once. Idempotent."""
        async with self._closing:
            if self.closed:
                return
            self.closed = True
            await self._acking.close()
            await self._settling.close()
            await self._end_poll()
            self._rest = []
            try:
                await self._run("leave")
            except LlamaDeployError as exc:
                logger.warning("the queue was not told that a subscription ends: %s", exc)
            await self._reader.aclose()

    def settle(self, settlement: _Settlement) -> None:
        """Send a settlement with the next ones that leave. Never raises."""
        batcher = self._acking if settlement.wish == "ack" else self._settling
        if settlement.wish == "nack":
            self._claim_at = 0.0  # what comes back goes before what is new
        try:
            sent = batcher.submit_nowait(settlement)
        except LlamaDeployError as exc:
            logger.warning("a settlement is lost, its message comes back: %s", exc)
        else:
            self._last[batcher] = sent
            sent.add_done_callback(_log_loss)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        while not (deliveries or self.closed):
            try:
                deliveries = await self._link.outlast(
                    partial(self._receive_once, max_messages), was_granted=lambda: self._has_claimed
                )
            except TopicNotFoundError:  # it has expired, or the server has lost its memory
                await self._link.outlast(partial(self.join, "0"))
        return deliveries

    async def _receive_once(self, max_messages: int) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        try:
            if self._reader_id is None:
                await self._recover()
            if loop.time() >= self._claim_at and (claimed := await self._claim(max_messages)):
                return claimed
            return await self._read(max_messages, seconds=min(self._claim_at - loop.time(), self._round))
        except QueueFullError as exc:  # to write a dead letter takes memory
            raise UnavailableError(str(exc)) from exc
        except (UnavailableError, ConfigError):
            self._reader_id = None
            raise

    async def _recover(self) -> None:
        """Give back what the server has sent and nobody has received."""
        await self._wait_settled()
        with self._link.translated():
            reader_id = await self._reader.client_id()
            held: Any = await self._reader.xpending_range(
                self._keys[0], self._group, "-", "+", 1000, self._consumer
            )
        lost = [
            _Settlement("nack", entry, each["times_delivered"])
            for each in held
            if (entry := each["message_id"].decode()) not in self._in_hand
        ]
        if lost:
            await self._settle_batch(lost)
            self._claim_at = 0.0
        self._reader_id = reader_id

    async def _claim(self, max_messages: int) -> list[Delivery]:
        """Take what has come back."""
        await self._wait_settled()
        begun = asyncio.get_running_loop().time()
        visibility = _milliseconds(self.visibility_timeout)
        wait, buried, claimed = await self._run("claim", *self._bounds, max_messages, visibility)
        self._has_claimed = True
        self._claim_at = begun + min(wait / 1000, self._lifetime / 3 or math.inf)
        self._note_buried(buried)
        return self._opened(claimed)

    async def _read(self, max_messages: int, *, seconds: float) -> list[Delivery]:
        """Take what is new, or wait for it."""
        if self.closed:
            return []
        stream, _, bell, _ = self._keys
        with self._link.translated():
            answer: Any = await self._reader.xreadgroup(
                self._group,
                self._consumer,
                {stream: ">", bell: ">"},
                count=max_messages,
                block=max(_milliseconds(seconds), 1),
            )
        fresh: list[Delivery] = []
        for key, entries in answer:
            if key.decode() == bell:
                self._claim_at = 0.0
            else:
                fresh = self._opened((entry, 1, fields.get(b"m", b"")) for entry, fields in entries)
        return fresh

    def _opened(self, entries: Iterable[tuple[bytes, int, bytes]]) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for raw_entry, attempt, body in entries:
            entry = raw_entry.decode()
            try:
                message = QueueMessage.decode(body)
            except MessageDecodeError as exc:
                logger.error("entry %s of %r becomes a dead letter: %s", entry, self._topic, exc)  # noqa: TRY400
                self.settle(_Settlement("reject", entry, attempt))
                continue
            delivery = _RedisDelivery(message, attempt=attempt, entry=entry, settle=self.settle)
            self._in_hand[entry] = delivery
            deliveries.append(delivery)
        return deliveries

    async def _end_poll(self) -> None:
        """End the wait at the server first: it must not give a message to who is gone."""
        poll, self._poll = self._poll, None
        if poll is None:
            return
        try:
            for _ in range(_UNBLOCK_TRIES):  # the read may not have begun yet
                if poll.done():
                    break
                await self._link.unblock(self._reader_id)
                await asyncio.wait([poll], timeout=_ACK_SECONDS)
        except LlamaDeployError as exc:
            logger.debug("the wait could not be ended at the server: %s", exc)
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)

    async def _wait_settled(self) -> None:
        if self._last:
            await asyncio.wait(self._last.values())

    async def _settle_batch(self, batch: Sequence[_Settlement]) -> list[None]:
        wishes = [
            argument
            for each in batch
            for argument in (each.wish, each.entry, each.attempt, each.milliseconds)
        ]
        buried = await self._link.persist(
            partial(self._run, "settle", *self._bounds, *wishes), give_up_at=self._link.give_up_at()
        )
        self._note_buried(buried)
        return [None] * len(batch)

    def _note_buried(self, count: int) -> None:
        if count:
            logger.error(
                "%d messages of %r were never acknowledged and are dead letters now",
                count,
                self._topic,
                extra={"action": "dead_letter", "topic": self._topic},
            )

    async def _run(self, action: str, *arguments: str | int) -> Any:
        common = (self._group, self._consumer, _milliseconds(self._lifetime))
        return await self._link.run(action, self._keys, *common, *arguments)


class _RedisDelivery(Delivery):
    """An entry in the hands of a member."""

    def __init__(
        self, message: QueueMessage, *, attempt: int, entry: str, settle: Callable[[_Settlement], None]
    ) -> None:
        self.message = message
        self.attempt = attempt
        self._entry = entry
        self._settle = settle
        self._settled = False

    async def ack(self) -> None:
        """The work is done; the message will not come back. Harmless when settled before."""
        self._settle_once("ack")

    async def nack(self, delay: float = 0.0) -> None:
        """The work failed; the message comes back, not before `delay` seconds."""
        self._settle_once("nack", delay)

    async def extend(self, seconds: float) -> None:
        """Keep the message `seconds` from now before it counts as unsettled."""
        if not self._settled:
            self._settle(_Settlement("extend", self._entry, self.attempt, _milliseconds(seconds)))

    def _settle_once(self, wish: Literal["ack", "nack"], seconds: float = 0.0) -> None:
        if not self._settled:
            self._settled = True
            self._settle(_Settlement(wish, self._entry, self.attempt, _milliseconds(seconds)))


def _stream(topic: str) -> str:
    return f"llama_deploy:topic:{topic}"


def _keys(topic: str, group: str) -> list[str]:
    """Return the keys of a group, as `actions.lua` wants them."""
    place = f"{quote(group, safe='')}:{topic}"
    deadlines, bell = f"llama_deploy:deadlines:{place}", f"llama_deploy:bell:{place}"
    return [_stream(topic), deadlines, bell, _stream(topic + DEAD_LETTERS_SUFFIX)]


def _parts(batch: Sequence[_Outgoing]) -> Iterator[list[_Outgoing]]:
    """Cut messages into requests of a bearable size; a large message goes alone."""
    size = 0
    part: list[_Outgoing] = []
    for outgoing in batch:
        if part and size + len(outgoing.body) > _BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(outgoing)
        size += len(outgoing.body)
    yield part


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(max(seconds, 0.0), _MAX_SECONDS) * 1000)


def _log_loss(sent: asyncio.Future[None]) -> None:
    if not sent.cancelled() and sent.exception() is not None:
        logger.warning("settlements are lost, their messages come back: %s", sent.exception())
