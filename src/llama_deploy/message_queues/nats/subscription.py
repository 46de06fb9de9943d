"""Reading a topic of NATS JetStream: subscriptions and deliveries."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as Inbox
from nats.js import api

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.message_queues.base import Delivery
from llama_deploy.message_queues.holding_subscription import (
    HeldSettlement,
    HoldingSubscription,
    ReceivedMessage,
)
from llama_deploy.message_queues.nats.connection import LiveConnection, NatsConnection
from llama_deploy.message_queues.nats.settlements import send
from llama_deploy.message_queues.nats.topics import NatsTopics
from llama_deploy.message_queues.nats.wire import nanoseconds
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.types import generate_id

logger = logging.getLogger(__name__)

_EARLY_END_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_PULL_SECONDS: Final = 60.0
"""How long one request waits at the server for a message."""
_HEARTBEAT_SECONDS: Final = 5.0
_MAX_SILENCE_SECONDS: Final = 12.0
"""After two missing heartbeats, the server has lost the request."""
_CLOSE_SECONDS: Final = 2.0
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


class NatsSubscription(HoldingSubscription):
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
        super().__init__(topic, connection.config)
        self._connection = connection
        self._topics = topics
        self._settings = settings
        self._returning: set[asyncio.Future[bool]] = set()
        """Deliveries that are returned, until the server has confirmed it."""
        self._joined = False
        self._inbox: tuple[LiveConnection, Inbox] | None = None
        self._pull: _Pull | None = None
        self._early_ends = 0
        self._arrived: deque[ReceivedMessage] = deque()
        self._news = asyncio.Event()

    async def join(self, connection: LiveConnection) -> None:
        """Create topic and group where they do not exist, and give the group these settings."""
        if self._settings.deliver_policy is not api.DeliverPolicy.ALL:
            await self._topics.ensure(connection, self.topic)
        await connection.js.add_consumer(self._connection.config.stream, self._settings)
        self._joined = True

    def _tell(self, settlement: HeldSettlement) -> asyncio.Future[bool]:
        sent = super()._tell(settlement)
        if settlement.action is SettleAction.NACK:
            self._returning.add(sent)
            sent.add_done_callback(self._returning.discard)
        return sent

    async def _send(self, batch: Sequence[HeldSettlement]) -> Sequence[HeldSettlement]:
        return await self._connection.call(lambda live: send(live, batch, usual=self.visibility_timeout))

    async def _store_dead_letter(self, received: ReceivedMessage) -> None:
        id_ = f"{self._settings.name}:{received.number}"
        await self._topics.store_dead_letter(self.topic, received.body, id_)

    async def _receive(self, max_messages: int) -> list[Delivery]:
        pull = self._pull
        if self._arrived and (pull is None or pull.ended or len(self._arrived) >= max_messages):
            count = min(max_messages, len(self._arrived))
            return self._open([self._arrived.popleft() for _ in range(count)])
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
        if self._inbox is not None:
            connection, inbox = self._inbox
            try:
                async with connection.lasting(asyncio.get_running_loop().time() + _CLOSE_SECONDS):
                    await inbox.drain()  # type: ignore[no-untyped-call]
            except (nats.errors.Error, TimeoutError):
                logger.debug("the server has dropped the requests for %s with their connection", self.topic)
        await self._end_settling()

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
            place, now = msg.metadata, asyncio.get_running_loop().time()
            received = ReceivedMessage(
                msg.data, msg.reply, place.num_delivered, now, number=place.sequence.stream
            )
            self._held.add(received, self._held_until(received))
            if self.closed:
                self._settle(received, SettleAction.NACK)
                return
            self._arrived.append(received)
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
