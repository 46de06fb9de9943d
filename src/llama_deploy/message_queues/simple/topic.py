"""What one topic of the simple queue holds: messages, and each group's place in them. No I/O, no clock."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class StoredMessage:
    """A message of a topic; one object, whatever the number of groups that are to get it."""

    seq: int
    """Its number in the broker: the order of publishing."""
    id: str
    body: bytes
    """The message in its wire form."""
    open_groups: int = 0
    """How many groups have not settled it yet. 0: the message is gone."""


@dataclass(slots=True, eq=False)
class Entry:
    """A message's place in one group."""

    message: StoredMessage
    group: Group
    deliveries: int = 0
    """How often it was handed to a member of the group."""


class Handout(NamedTuple):
    """A message that was handed to a member, which settles it by its delivery id."""

    delivery_id: str
    attempt: int
    """How often the message was handed out to the group, this time included."""
    body: bytes
    """The message in its wire form."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A member that waits for messages."""

    future: asyncio.Future[list[Handout]]
    max_messages: int
    visibility: float
    subscription: str

    def finish(self, handouts: list[Handout]) -> None:
        """End the wait."""
        if not self.future.done():
            self.future.set_result(handouts)


@dataclass(slots=True, eq=False)
class Group:
    """The members that share a topic's messages, and what they have not settled yet."""

    name: str
    topic: Topic
    since: int
    """The group gets messages with a greater number than this."""
    waiters: deque[Waiter] = field(default_factory=deque)
    """Members that wait, first come first served. While there are any, nothing is ready."""
    last_read: float = 0.0
    """When a member has joined or read."""
    delayed: int = 0
    in_flight: int = 0
    _fresh: deque[Entry] = field(default_factory=deque)
    _returned: list[tuple[int, Entry]] = field(default_factory=list)
    """What came back, a heap by number. All of it is older than `_fresh`: it was taken from there."""

    @property
    def ready(self) -> int:
        """How many messages can be handed out now."""
        return len(self._fresh) + len(self._returned)

    @property
    def is_held(self) -> bool:
        """Whether a member waits, or has messages that are not settled."""
        return bool(self.waiters or self.in_flight or self.delayed)

    def append(self, message: StoredMessage) -> None:
        """Put a newly published message at the end."""
        message.open_groups += 1
        self._fresh.append(Entry(message, self))

    def put_back(self, entry: Entry) -> None:
        """Put what came back before all that was not handed out yet, in the topic's order."""
        heapq.heappush(self._returned, (entry.message.seq, entry))

    def take(self, max_messages: int, *, max_bytes: int | None = None) -> list[Entry]:
        """Take the first messages, at most `max_messages`, up to the one with which they have `max_bytes`."""
        taken: list[Entry] = []
        size = 0
        while self.ready and len(taken) < max_messages and (max_bytes is None or size < max_bytes):
            entry = heapq.heappop(self._returned)[1] if self._returned else self._fresh.popleft()
            taken.append(entry)
            size += len(entry.message.body)
        return taken

    def discard(self, message: StoredMessage) -> None:
        """Remove a message that must not be delivered any more."""
        self._fresh = deque(entry for entry in self._fresh if entry.message is not message)
        self._returned = [item for item in self._returned if item[1].message is not message]
        heapq.heapify(self._returned)


@dataclass(slots=True)
class Usage:
    """What all topics of a broker hold together."""

    size_bytes: int = 0
    topics: int = 0
    """How many of them have messages."""


@dataclass(slots=True, eq=False)
class Topic:
    """A topic: its messages that are not settled by every group yet."""

    name: str
    expires_after: float | None = None
    """Seconds without a reader after which the topic is dropped."""
    groups: dict[str, Group] = field(default_factory=dict)
    messages: dict[str, StoredMessage] = field(default_factory=dict)
    """By id, oldest first."""
    size_bytes: int = 0
    """The size of all messages together."""
    last_read: float = 0.0
    """When a member of any group has joined or read."""
    last_used: float = 0.0
    """When it was last read or written."""
    was_read: bool = False
    """Whether a member has ever asked for messages."""
    usage: Usage = field(default_factory=Usage)
    """What it holds together with the other topics."""

    @property
    def has_readers(self) -> bool:
        """Whether a member of any group waits now."""
        return any(group.waiters for group in self.groups.values())

    @property
    def is_held(self) -> bool:
        """Whether a member of any group waits, or has messages that are not settled."""
        return any(group.is_held for group in self.groups.values())

    def note_read(self, group: str, now: float) -> None:
        """A member of a group has joined or reads."""
        self.last_read = self.last_used = self.groups[group].last_read = now

    def add(self, message: StoredMessage, groups: Iterable[Group]) -> None:
        """Take a message for `groups`, which are groups of this topic."""
        if not self.messages:
            self.usage.topics += 1
        self.messages[message.id] = message
        self.size_bytes += len(message.body)
        self.usage.size_bytes += len(message.body)
        for group in groups:
            group.append(message)

    def settle(self, message: StoredMessage) -> bool:
        """Note that one more group is done with `message`. Returns whether that was the last."""
        message.open_groups -= 1
        if message.open_groups > 0:
            return False
        self.remove(message)
        return True

    def remove(self, message: StoredMessage) -> None:
        """Remove a message, whether or not all groups have settled it."""
        message.open_groups = 0
        if self.messages.pop(message.id, None) is not None:
            self.size_bytes -= len(message.body)
            self.usage.size_bytes -= len(message.body)
            if not self.messages:
                self.usage.topics -= 1
