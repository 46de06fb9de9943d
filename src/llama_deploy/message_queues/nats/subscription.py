"""Reading a topic of NATS JetStream: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox
from nats.js import api

from llama_deploy.backoff import Backoff
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.dead_letters import decode_message, is_exhausted
from llama_deploy.message_queues.held_deliveries import HeldDeliveries, held_until
from llama_deploy.message_queues.nats.connection import LiveConnection, NatsConnection
from llama_deploy.message_queues.nats.settlements import NatsSettlement, send
from llama_deploy.message_queues.nats.topics import NatsTopics
from llama_deploy.message_queues.nats.wire import ACK, NAK, PROGRESS, TERM, nak, nanoseconds
from llama_deploy.message_queues.settlement_batcher import SettlementBatcher
from llama_deploy.messages import QueueMessage
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_EARLY_END_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_PULL_SECONDS: Final = 60.0
"""How long one request waits at the server for a message."""
_HEARTBEAT_SECONDS: Final = 5.0
_MAX_SILENCE_SECONDS: Final = 12.0
"""After two missing heartbeats, the server has lost the request."""
_CLOSE_SECONDS: Final = 2.0
_SAME_SECONDS: Final = 0.001
_HEARTBEAT: Final = "100"
_NO_MESSAGES: Final = frozenset({"404", "408"})
"""Status of a request that ended while its group goes on."""


@dataclass(slots=True)
class _Pull:
    """One request for messages."""

    connection: LiveConnection
    reply: str
    wanted: int
    since: float
    arrived: int = 0
    ended: bool = False
    status: str = ""
    """With which the server ended it before `wanted` messages."""


class NatsSubscription(Subscription):
    """Pulls from one consumer. A `receive` that is cancelled leaves its request to the next one.

    Args:
        connection: The connection to the server.
        topics: The topics of the stream.
        topic: The topic.
        settings: The consumer that is the group.
    """

    def __init__(
        self, connection: NatsConnection, topics: NatsTopics, *, topic: str, settings: api.ConsumerConfig
    ) -> None:
        super().__init__(topic, visibility_timeout=float(settings.ack_wait or 0.0))
        self.held = HeldDeliveries[tuple[int, str]]()
        """What has arrived and is not settled, by sequence in the stream and reply subject."""
        self._connection = connection
        self._topics = topics
        self._settings = settings
        self._settlements: SettlementBatcher[NatsSettlement] = SettlementBatcher(
            self._send, name="NATS settler"
        )
        self._returning: set[asyncio.Future[bool]] = set()
        """Deliveries that are returned, until the server has confirmed it."""
        self._moving: set[asyncio.Task[None]] = set()
        self._joined = False
        self._inbox: tuple[LiveConnection, Inbox] | None = None
        self._pull: _Pull | None = None
        self._early_ends = 0
        self._arrived: deque[Msg] = deque()
        self._news = asyncio.Event()

    async def join(self, connection: LiveConnection) -> None:
        """Create topic and group where they do not exist, and give the group these settings."""
        if self._settings.deliver_policy is not api.DeliverPolicy.ALL:
            await self._topics.ensure(connection, self.topic)
        await connection.js.add_consumer(self._connection.config.stream, self._settings)
        self._joined = True

    def settle(self, settlement: NatsSettlement) -> asyncio.Future[bool]:
        """Send a settlement with the next batch. The future says whether it was sent."""
        sent = self._settlements.submit(settlement)
        if settlement.returned:
            self._returning.add(sent)
            sent.add_done_callback(self._returning.discard)
        return sent

    def is_exhausted(self, deliveries: int) -> bool:
        """Return whether a message was delivered as often as it may be."""
        return is_exhausted(self.topic, deliveries, self._connection.config.max_deliveries)

    def move_to_dead_letters(self, msg: Msg) -> asyncio.Task[None]:
        """Move a message to the dead letters; one that cannot be moved comes back."""
        self.held.remove(place_of(msg))
        moving = asyncio.create_task(self._move_to_dead_letters(msg), name=f"dead letter of {self.topic}")
        self._moving.add(moving)
        moving.add_done_callback(self._moving.discard)
        return moving

    async def _move_to_dead_letters(self, msg: Msg) -> None:
        if await self._topics.store_dead_letter(self.topic, msg):
            self.settle(NatsSettlement(msg.reply, TERM))

    async def _receive(self, max_messages: int) -> list[Delivery]:
        pull = self._pull
        if self._arrived and (pull is None or pull.ended or len(self._arrived) >= max_messages):
            return self._take(max_messages)
        if pull is None:
            await self._connection.call_forever(partial(self._ask, max_messages=max_messages))
        elif pull.ended:
            self._pull = None
            await self._pause_after(pull)
        else:
            await self._listen(pull)
        return []

    async def _close(self) -> None:
        self._news.set()
        for (number, reply), until in self.held.clear().items():
            self.settle(NatsSettlement(reply, NAK, returned=number, until=until))
        if self._inbox is not None:
            connection, inbox = self._inbox
            try:
                async with connection.lasting(asyncio.get_running_loop().time() + _CLOSE_SECONDS):
                    await inbox.drain()  # type: ignore[no-untyped-call]
            except (nats.errors.Error, TimeoutError):
                logger.debug("the server has dropped the requests for %s with their connection", self.topic)
        await asyncio.gather(*self._moving)
        await self._settlements.close()

    async def _ask(self, connection: LiveConnection, max_messages: int) -> None:
        """Request messages: the first to come, with those that are there with it."""
        if self.closed:
            return
        if not self._joined:
            await self.join(connection)
        if self._returning:
            await asyncio.wait(self._returning)  # they come before what is new
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
        subject = (
            f"{api.DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{self._connection.config.stream}.{self._settings.name}"
        )
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
            until = held_until(self.visibility_timeout, since=asyncio.get_running_loop().time())
            if self.closed:
                sequence = msg.metadata.sequence.stream
                self.settle(NatsSettlement(msg.reply, NAK, returned=sequence, until=until))
                return
            self.held.add(place_of(msg), until)
            self._arrived.append(msg)
            if pull is not None:
                pull.arrived += 1
                pull.ended = pull.ended or pull.arrived >= pull.wanted
        self._news.set()

    async def _listen(self, pull: _Pull) -> None:
        """Wait for news of a request; one of which there is none is over."""
        self._news.clear()
        try:
            async with pull.connection.lasting(asyncio.get_running_loop().time() + _MAX_SILENCE_SECONDS):
                await self._news.wait()
        except TimeoutError:
            pull.ended = True

    async def _pause_after(self, pull: _Pull) -> None:
        """Pause after a request that ended too early, which happens while the server is in a change."""
        lasted = asyncio.get_running_loop().time() - pull.since
        if pull.arrived or pull.connection.lost.done() or lasted > _PULL_SECONDS * 0.9:
            self._early_ends = 0
            return
        self._joined = pull.status in _NO_MESSAGES
        self._early_ends += 1
        await asyncio.sleep(_EARLY_END_BACKOFF.delay(self._early_ends))

    def _take(self, max_messages: int) -> list[Delivery]:
        self.held.drop_expired()
        msgs = [self._arrived.popleft() for _ in range(min(max_messages, len(self._arrived)))]
        held = [msg for msg in msgs if self.held.until(place_of(msg))]
        return [delivery for msg in held if (delivery := self._open(msg)) is not None]

    def _open(self, msg: Msg) -> Delivery | None:
        """Return the delivery of a message, or move it to the dead letters."""
        if not self.is_exhausted(msg.metadata.num_delivered - 1):
            message = decode_message(msg.data, topic=self.topic)
            if message is not None:
                return NatsDelivery(self, msg, message)
        self.move_to_dead_letters(msg)
        return None

    async def _send(self, batch: Sequence[NatsSettlement]) -> list[bool]:
        sent = await self._connection.call(lambda live: send(live, batch))
        return [each in sent for each in batch]


class NatsDelivery(Delivery):
    """A message that the server expects an acknowledgement of, on the reply subject that came with it."""

    def __init__(self, subscription: NatsSubscription, msg: Msg, message: QueueMessage) -> None:
        super().__init__(message, attempt=msg.metadata.num_delivered)
        self._place = place_of(msg)
        self._msg = msg
        self._subscription = subscription

    async def _ack(self) -> None:
        self._subscription.held.remove(self._place)
        self._settle(ACK)

    async def _nack(self, delay: float) -> None:
        """One that was held for too long has come back already, or is about to."""
        until = self._subscription.held.remove(self._place)
        if not until:
            return
        if self._subscription.is_exhausted(self.attempt):
            await asyncio.wait([self._subscription.move_to_dead_letters(self._msg)])
        else:
            self._settle(nak(delay), returned=self._place[0], until=until)

    async def _extend(self, seconds: float) -> None:
        held = self._subscription.held
        if until := held.until(self._place):
            # In progress means one more visibility timeout; any other time is a redelivery that is put off.
            usual = abs(seconds - self._subscription.visibility_timeout) < _SAME_SECONDS
            longer = held_until(seconds, since=asyncio.get_running_loop().time())
            sent = self._settle(PROGRESS if usual else nak(seconds), until=until)
            held.extend_when(sent, self._place, longer)

    def _settle(self, payload: bytes, *, returned: int = 0, until: float = math.inf) -> asyncio.Future[bool]:
        settlement = NatsSettlement(self._msg.reply, payload, returned=returned, until=until)
        return self._subscription.settle(settlement)


def place_of(msg: Msg) -> tuple[int, str]:
    """Return the key of a delivery: the sequence in the stream, and the reply subject."""
    return msg.metadata.sequence.stream, msg.reply
