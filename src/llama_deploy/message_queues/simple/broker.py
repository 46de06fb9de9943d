"""The core of the simple queue: topics, groups, deliveries and their deadlines, in memory.

It has one timer and no I/O of its own: topics are kept by `catalogue`, HTTP is in `queue_server`, the disk in
`queue_journal`.

A message is in one of these places, for each group of its topic:

```
publish ──▶ ready ──▶ in flight ──ack──▶ settled
              ▲           │ nack, visibility timeout, consumer gone
              ├── delayed ◀┤
              └────────────┘ or, after `max_deliveries`, the topic `{topic}.dead_letters`
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from llama_deploy.errors import (
    ClosedError,
    ConflictError,
    PayloadTooLargeError,
    QueueFullError,
    TopicNotFoundError,
)
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, DEFAULT_GROUP
from llama_deploy.message_queues.remembering import remember
from llama_deploy.message_queues.settlement import SettleAction
from llama_deploy.message_queues.simple.catalogue import Catalogue
from llama_deploy.message_queues.simple.deliveries import Deliveries
from llama_deploy.message_queues.simple.limits import BrokerLimits
from llama_deploy.message_queues.simple.queue_journal import Journal, MessageStored, StoredState
from llama_deploy.message_queues.simple.settlement import Settlement
from llama_deploy.message_queues.simple.timetable import Clock, Timetable
from llama_deploy.message_queues.simple.topic import Entry, Handout, Waiter


@dataclass(frozen=True, slots=True)
class GroupDepth:
    """How many messages a group has."""

    ready: int
    delayed: int
    in_flight: int
    waiting_members: int


@dataclass(frozen=True, slots=True)
class TopicDepth:
    """The messages of a topic."""

    messages: int
    size_bytes: int
    groups: dict[str, GroupDepth]


class SimpleBroker:
    """Topics with groups of competing consumers. Use it in one event loop; `close` it.

    Args:
        clock: The running event loop; tests bring their own.
        limits: The limits.
        journal: Where changes are recorded. None: a restart loses everything.
        stored: The content of the journal at the start.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limits: BrokerLimits | None = None,
        journal: Journal | None = None,
        stored: StoredState | None = None,
    ) -> None:
        self.limits = limits or BrokerLimits()
        self._timetable = Timetable(clock)
        self._journal = journal
        self._topics = Catalogue(timetable=self._timetable, limits=self.limits, journal=journal)
        self._deliveries = Deliveries(self._timetable, on_unsettled=partial(self._return, delay=0.0))
        self._closed_subscriptions: dict[str, None] = {}
        self._closed = False
        if stored is not None:
            self._topics.restore(stored)

    @property
    def durable(self) -> bool:
        """Whether what was accepted survives the death of the process."""
        return self._journal is not None

    async def check(self) -> None:
        """Check that messages are taken, by writing something small to the journal.

        Raises:
            UnavailableError: The journal cannot be written.
            ClosedError: The broker is closed.
        """
        self._check_open()
        if self._journal is not None:
            await self._journal.check()

    def create(
        self, topic_name: str, group: str = DEFAULT_GROUP, *, expires_after: float | None = None
    ) -> None:
        """Create a topic and a group of it, if they do not exist.

        A new group gets what is published from now on.

        Args:
            topic_name: At most 255 characters.
            group: The same.
            expires_after: Seconds without a reader after which the topic is dropped. None: unchanged.

        Raises:
            InvalidRequestError: A name is not valid.
            QueueFullError: There are too many topics.
        """
        topic = self._topics.ensure(topic_name)
        if expires_after is not None:
            self._topics.expire(topic, after=expires_after)
        self._topics.ensure_group(topic, group)
        topic.note_read(group, self._timetable.now())

    async def publish(self, topic_name: str, messages: Sequence[tuple[str, bytes]]) -> int:
        """Store messages, in this order, and return when they are durable.

        A message whose id is in the topic already is a duplicate, so a publisher that did not get its answer
        can publish again. With a journal, consumers may get a message a moment before it is durable; if it
        cannot be written, its publisher gets an error and the message may still be delivered.

        Args:
            topic_name: Created if it does not exist.
            messages: The id and the wire form of each.

        Returns:
            How many were stored: fewer than all when the topic is full.

        Raises:
            QueueFullError: The topic is full.
            PayloadTooLargeError: A message is larger than all messages of a topic may be together. None of
                the messages is stored.
            InvalidRequestError: The name of the topic is not valid.
            ClosedError: The broker is closed.
        """
        self._check_open()
        topic = self._topics.ensure(topic_name)
        topic.last_used = self._timetable.now()
        stored: list[MessageStored] = []
        taken = 0
        for message_id, body in messages:
            self._check_size(message_id, body)
        for message_id, body in messages:
            if message_id not in topic.messages:
                if not self._topics.has_room(topic, len(body)):
                    break
                stored.append(self._topics.store(topic, message_id, body))
            taken += 1
        if messages and not taken:
            raise QueueFullError(
                f"topic {topic_name!r} holds {len(topic.messages)} messages ({topic.size_bytes} bytes) and "
                "is full; retry when some are settled",
                topic=topic_name,
            )
        for group in topic.groups.values():
            self._deliveries.dispatch(group)
        if self._journal is not None:
            await self._journal.commit(stored)
        return taken

    async def receive(
        self,
        topic_name: str,
        *,
        group: str = DEFAULT_GROUP,
        max_messages: int = 1,
        wait: float = 0.0,
        visibility: float | None = None,
        subscription: str = "",
    ) -> list[Handout]:
        """Take the next messages for a member of a group; wait if there are none.

        When the caller is cancelled, nothing is taken.

        Args:
            topic_name: The topic.
            group: The group.
            max_messages: The most messages to take.
            wait: Seconds to wait for the first message.
            visibility: Seconds after which unsettled messages come back. None: the broker's default.
            subscription: The member, for `release`. Empty: none.

        Returns:
            The messages, in the topic's order; none if none came in time.

        Raises:
            TopicNotFoundError: There is no such topic, or it has no such group.
            ConflictError: The subscription was closed.
            ClosedError: The broker is closed.
        """
        self._check_open()
        if subscription in self._closed_subscriptions:
            raise ConflictError(f"subscription {subscription} was closed; receive under a new name")
        topic = self._topics.get(topic_name)
        if group not in topic.groups:
            raise TopicNotFoundError(
                f"topic {topic_name!r} has no group {group!r}; subscribing creates it, "
                "over HTTP POST /topics/{topic}",
                topic=topic_name,
            )
        waiter = Waiter(
            future=asyncio.get_running_loop().create_future(),
            max_messages=max_messages,
            visibility=self.limits.visibility_timeout if visibility is None else visibility,
            subscription=subscription,
        )
        topic.was_read = True
        topic.note_read(group, self._timetable.now())
        if topic.groups[group].ready or wait <= 0:
            return self._deliveries.hand_out(topic.groups[group], waiter)
        try:
            return await self._deliveries.wait(topic.groups[group], waiter, seconds=wait)
        finally:
            if group in topic.groups:
                topic.note_read(group, self._timetable.now())

    def has_ready(self, topic_name: str, group: str) -> bool:
        """Return whether `receive` would not wait. False too where there is no such topic or group."""
        with suppress(TopicNotFoundError, KeyError):
            return self._topics.get(topic_name).groups[group].ready > 0
        return False

    def settle(self, settlements: Iterable[Settlement]) -> None:
        """Settle deliveries. Those that are settled already, or timed out, are ignored."""
        for settlement in settlements:
            if settlement.action is SettleAction.EXTEND:
                self._deliveries.extend(settlement.delivery_id, settlement.seconds)
                continue
            entry = self._deliveries.end(settlement.delivery_id)
            if entry is None or not entry.message.open_groups:
                continue
            match settlement.action:
                case SettleAction.ACK:
                    self._topics.finish(entry)
                case SettleAction.NACK:
                    self._return(entry, delay=settlement.seconds)
                case SettleAction.REJECT:
                    self._move_to_dead_letters(entry, reason="its consumer could not decode it")

    def release(self, subscription: str, *, closed: bool = False) -> None:
        """Return all that a subscription holds, and end its waiting. An unknown one is ignored.

        Args:
            subscription: The member.
            closed: It is closed: its requests that are still on the way are rejected.
        """
        if closed:
            remember(self._closed_subscriptions, subscription, None)
        self._deliveries.release(subscription)

    def give_back(self, handouts: Iterable[Handout]) -> None:
        """Take back what did not reach its consumer, as if it had never been handed out."""
        self._deliveries.give_back(handouts)

    def depths(self) -> dict[str, TopicDepth]:
        """Return what each topic holds."""
        return {
            topic.name: TopicDepth(
                messages=len(topic.messages),
                size_bytes=topic.size_bytes,
                groups={
                    group.name: GroupDepth(group.ready, group.delayed, group.in_flight, len(group.waiters))
                    for group in topic.groups.values()
                },
            )
            for topic in self._topics
        }

    def close(self) -> None:
        """End all waiting and accept no messages. Settling still works. Idempotent; deletes nothing."""
        self._closed = True
        for topic in self._topics:
            for group in topic.groups.values():
                for waiter in list(group.waiters):
                    waiter.finish([])
        self._timetable.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the broker of the message queue is closed; start its server or process again")

    def _check_size(self, message_id: str, body: bytes) -> None:
        limit = self.limits.max_bytes_per_topic
        if len(body) > limit:
            raise PayloadTooLargeError(
                f"message {message_id!r} has {len(body)} bytes, and all messages of a topic together may "
                f"have {limit}; send less, or raise max_bytes_per_topic of the message queue",
                limit_bytes=limit,
            )

    def _return(self, entry: Entry, *, delay: float) -> None:
        """Take back a message on which the work failed."""
        topic = entry.group.topic
        limit = self.limits.max_deliveries
        if entry.deliveries >= limit and not topic.name.endswith(DEAD_LETTERS_SUFFIX):
            self._move_to_dead_letters(
                entry, reason=f"it was delivered {entry.deliveries} times without an ack"
            )
        else:
            self._deliveries.put_back(entry, delay=delay)

    def _move_to_dead_letters(self, entry: Entry, *, reason: str) -> None:
        for group in self._topics.move_to_dead_letters(entry, reason=reason).groups.values():
            self._deliveries.dispatch(group)
