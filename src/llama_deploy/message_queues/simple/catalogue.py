"""The topics of a broker: creating, storing, dead letters, expiry."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from llama_deploy.errors import InvalidRequestError, QueueFullError, TopicNotFoundError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX, DEFAULT_GROUP
from llama_deploy.message_queues.remembering import remember
from llama_deploy.message_queues.simple.idleness import IdleTopics, idle_groups
from llama_deploy.message_queues.simple.limits import MAX_NAME_LENGTH, BrokerLimits
from llama_deploy.message_queues.simple.queue_journal import (
    Change,
    GroupCreated,
    Journal,
    MessageSettled,
    MessageStored,
    StoredState,
    TopicCreated,
    TopicDropped,
)
from llama_deploy.message_queues.simple.timetable import Timetable
from llama_deploy.message_queues.simple.topic import Entry, Group, StoredMessage, Topic, Usage

logger = logging.getLogger(__name__)


class Catalogue:
    """All topics, by name. Every change goes to the journal.

    Args:
        timetable: For the expiry of topics without readers.
        limits: The limits.
        journal: Where changes are recorded. None: nowhere.
    """

    def __init__(self, *, timetable: Timetable, limits: BrokerLimits, journal: Journal | None) -> None:
        self._timetable = timetable
        self._limits = limits
        self._journal = journal
        self._topics: dict[str, Topic] = {}
        self._expired: dict[str, float] = {}
        self._last_seq = 0
        self._usage = Usage()
        self._idle = IdleTopics(idle_after=limits.idle_after)

    def __iter__(self) -> Iterator[Topic]:
        return iter(self._topics.values())

    def get(self, name: str) -> Topic:
        """Return a topic.

        Raises:
            TopicNotFoundError: There is none of this name.
        """
        try:
            return self._topics[name]
        except KeyError:
            raise TopicNotFoundError(
                f"the topic {name!r} does not exist; publishing or subscribing to it creates it, "
                "over HTTP also POST /topics/{topic}",
                topic=name,
            ) from None

    def ensure(self, name: str) -> Topic:
        """Return a topic; create it with its default group, if it does not exist.

        Raises:
            InvalidRequestError: Not a name.
            QueueFullError: There are too many topics, and all are needed.
        """
        topic = self._topics.get(name)
        if topic is not None:
            return topic
        _check_name(name)
        if len(self._topics) >= self._limits.max_topics:
            self._make_room(name)
        return self._create(name)

    def ensure_group(self, topic: Topic, name: str) -> None:
        """Create a group, if it does not exist. It gets what is stored from now on.

        Raises:
            InvalidRequestError: Not a name.
        """
        if name not in topic.groups:
            _check_name(name)
            topic.groups[name] = Group(name, topic, self._last_seq, last_read=self._timetable.now())
            self._note(GroupCreated(topic.name, name, self._last_seq))

    def has_room(self, topic: Topic, size: int) -> bool:
        """Return whether a topic may get a message of so many bytes.

        When it is full, groups that nobody has read for long lose what they hold.
        """
        return self._fits(topic, size) or (self._drop_idle_groups(topic) and self._fits(topic, size))

    def expire(self, topic: Topic, *, after: float) -> None:
        """Drop a topic after so many seconds without a reader."""
        if topic.expires_after != after:
            topic.expires_after = after
            self._watch_idleness(topic)
            self._note(TopicCreated(topic.name, after))

    def store(self, topic: Topic, message_id: str, body: bytes) -> MessageStored:
        """Put a message at the end of a topic. The returned change is not in the journal yet."""
        self._last_seq += 1
        topic.add(StoredMessage(self._last_seq, message_id, body), topic.groups.values())
        return MessageStored(self._last_seq, topic.name, message_id, body)

    def finish(self, entry: Entry) -> None:
        """Note that one group is done with a message."""
        gone = entry.group.topic.settle(entry.message)
        self._note(MessageSettled(entry.message.seq, None if gone else entry.group.name))

    def move_to_dead_letters(self, entry: Entry, *, reason: str) -> Topic:
        """Put a message aside as a dead letter, and return the topic in which it is now."""
        topic, message = entry.group.topic, entry.message
        logger.error(
            "message %s of topic %s, group %s becomes a dead letter: %s",
            message.id,
            topic.name,
            entry.group.name,
            reason,
            extra={"action": "dead_letter", "message_id": message.id, "topic": topic.name},
        )
        name = topic.name[: MAX_NAME_LENGTH - len(DEAD_LETTERS_SUFFIX)] + DEAD_LETTERS_SUFFIX
        # Not bounded by `max_topics`: the message has nowhere else to go.
        dead = self._topics.get(name) or self._create(name)
        while dead.messages and not self._has_room(dead, message):
            self._drop_oldest(dead)
        if message.id not in dead.messages:
            self._note(self.store(dead, message.id, message.body))
        self.finish(entry)
        return dead

    def restore(self, stored: StoredState) -> None:
        """Restore the content of a journal."""
        for created in stored.topics:
            self._watch_idleness(self._add(created.name, expires_after=created.expires_after))
        # The record of a topic may be missing, if the disk was full when it was created.
        named = {group.topic for group in stored.groups} | {item.topic for item in stored.messages}
        for name in named - self._topics.keys():
            self._add(name)
        now = self._timetable.now()
        for group in stored.groups:
            topic = self._topics[group.topic]
            topic.groups[group.name] = Group(group.name, topic, group.since, last_read=now)
        for item in stored.messages:
            topic = self._topics[item.topic]
            message = StoredMessage(item.seq, item.message_id, item.body)
            pending = [
                group
                for group in topic.groups.values()
                if group.since < item.seq and (item.seq, group.name) not in stored.settled
            ]
            topic.add(message, pending)
        self._last_seq = stored.last_seq

    def _create(self, name: str) -> Topic:
        # A topic that expired and is written to again still has no reader: it expires again.
        topic = self._add(name, expires_after=self._expired.pop(name, None))
        self._watch_idleness(topic)
        self._note(TopicCreated(name, topic.expires_after))
        self.ensure_group(topic, DEFAULT_GROUP)
        return topic

    def _add(self, name: str, *, expires_after: float | None = None) -> Topic:
        now = self._timetable.now()
        topic = Topic(name, expires_after=expires_after, last_read=now, last_used=now, usage=self._usage)
        self._topics[name] = topic
        return topic

    def _make_room(self, name: str) -> None:
        """Drop the topic that is needed least, because there is to be a new one.

        Raises:
            QueueFullError: All topics are needed.
        """
        dropped = self._idle.pop(self._topics, now=self._timetable.now())
        if dropped is None:
            raise QueueFullError(
                f"the limit of {len(self._topics)} topics is reached; use fewer names, or give "
                "topics that only one process reads an expires_after, so that they are dropped with it",
                topic=name,
            )
        if dropped.messages:
            count = len(dropped.messages)
            logger.warning(
                "topic %s is dropped with %d message%s that nobody reads, because there are %d topics and"
                " topic %s is new",
                dropped.name,
                count,
                "" if count == 1 else "s",
                len(self._topics),
                name,
                extra={"action": "drop_topic", "topic": dropped.name},
            )
        self._drop(dropped)

    def _drop(self, topic: Topic) -> None:
        del self._topics[topic.name]
        for message in list(topic.messages.values()):
            topic.remove(message)
        self._note(TopicDropped(topic.name))

    def _fits(self, topic: Topic, size: int) -> bool:
        limits, usage = self._limits, self._usage
        if len(topic.messages) >= limits.max_messages_per_topic:
            return False
        most = limits.max_bytes_per_topic
        if usage.size_bytes + size > limits.max_bytes:
            most = min(most, limits.max_bytes // max(1, usage.topics + (not topic.messages)))
        return topic.size_bytes + size <= most

    def _drop_idle_groups(self, topic: Topic) -> bool:
        """Drop groups that nobody reads; whoever comes back joins again. Return whether there were any."""
        idle_after = self._limits.idle_after
        idle = idle_groups(topic, now=self._timetable.now(), idle_after=idle_after)
        for group in idle:
            entries = group.take(group.ready)
            for entry in entries:
                self.finish(entry)
            del topic.groups[group.name]
            logger.warning(
                "group %s of topic %s has lost %d messages: nobody has read it for %g seconds, and the topic"
                " is full",
                group.name,
                topic.name,
                len(entries),
                idle_after,
                extra={"action": "drop_group", "topic": topic.name},
            )
        return bool(idle)

    def _has_room(self, dead: Topic, message: StoredMessage) -> bool:
        return (
            len(dead.messages) < self._limits.max_dead_letters
            and dead.size_bytes + len(message.body) <= self._limits.max_bytes_per_topic
        )

    def _drop_oldest(self, topic: Topic) -> None:
        message = next(iter(topic.messages.values()))
        for group in topic.groups.values():
            group.discard(message)
        topic.remove(message)
        self._note(MessageSettled(message.seq, None))
        logger.warning(
            "topic %s is full; its oldest message %s is dropped",
            topic.name,
            message.id,
            extra={"action": "drop_dead_letter", "message_id": message.id, "topic": topic.name},
        )

    def _watch_idleness(self, topic: Topic) -> None:
        topic.last_read = self._timetable.now()
        if topic.expires_after is not None:
            self._timetable.add(topic.last_read + topic.expires_after, partial(self._on_idle, topic))

    def _on_idle(self, topic: Topic) -> None:
        """Drop a topic that has expired."""
        if topic.expires_after is None or self._topics.get(topic.name) is not topic:
            return
        now = self._timetable.now()
        due = topic.last_read + topic.expires_after
        if topic.has_readers or now < due:
            due = now + topic.expires_after if topic.has_readers else due
            self._timetable.add(due, partial(self._on_idle, topic))
            return
        self._drop(topic)
        remember(self._expired, topic.name, topic.expires_after)
        logger.info(
            "topic %s was dropped after %g seconds without a reader",
            topic.name,
            topic.expires_after,
            extra={"action": "drop_topic", "topic": topic.name},
        )

    def _note(self, change: Change) -> None:
        if self._journal is not None:
            self._journal.note([change])


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidRequestError(
            f"{name!r:.80} is not a valid name; use 1 to {MAX_NAME_LENGTH} printable characters"
        )
