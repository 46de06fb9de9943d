"""What makes room when the broker is full: topics and groups that nobody reads. No I/O."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from typing import Final

from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX
from llama_deploy.message_queues.simple.topic import Group, Topic

_RANKED_SHARE: Final = 100
"""One of so many topics is ranked at once: looking at thousands of them for each takes milliseconds."""


class IdleTopics:
    """Which topics are needed least, so that they can make room for others.

    Topics without messages go first, then those with messages that nobody has ever read or has read for long;
    of each kind first the one that was used least recently. Dead letters go last.

    Args:
        idle_after: Seconds after which a topic that was read counts as read no longer.
    """

    def __init__(self, *, idle_after: float) -> None:
        self._idle_after = idle_after
        self._ranked: deque[tuple[Topic, float]] = deque()
        """The topics that are needed least, each with the time at which it was used last."""

    def pop(self, topics: Mapping[str, Topic], *, now: float) -> Topic | None:
        """Return the topic that is needed least; it is dropped next. None: all are needed.

        Args:
            topics: All topics, by name.
            now: The present time.
        """
        while self._ranked or self._rank(topics, now):
            topic, last_used = self._ranked.popleft()
            # It may have been used since, or dropped.
            is_idle = topic.last_used == last_used and not self._is_needed(topic, now)
            if is_idle and topics.get(topic.name) is topic:
                return topic
        return None

    def _rank(self, topics: Mapping[str, Topic], now: float) -> bool:
        """Find the topics that are needed least. Return whether there are any that are not needed."""
        idle = (topic for topic in topics.values() if not self._is_needed(topic, now))
        least = heapq.nsmallest(max(1, len(topics) // _RANKED_SHARE), idle, key=_need)
        self._ranked.extend((topic, topic.last_used) for topic in least)
        return bool(least)

    def _is_needed(self, topic: Topic, now: float) -> bool:
        if topic.is_held:
            return True
        return bool(topic.messages) and topic.was_read and now - topic.last_read <= self._idle_after


def _need(topic: Topic) -> tuple[bool, bool, float]:
    return bool(topic.messages), topic.name.endswith(DEAD_LETTERS_SUFFIX), topic.last_used


def idle_groups(topic: Topic, *, now: float, idle_after: float) -> list[Group]:
    """Return the groups of a topic that nobody has read for long, if another group of it is read."""
    since = now - idle_after
    idle = [group for group in topic.groups.values() if not group.is_held and group.last_read < since]
    return idle if len(idle) < len(topic.groups) else []
