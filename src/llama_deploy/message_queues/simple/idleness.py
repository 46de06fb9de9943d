"""What makes room when the broker is full: topics and groups that nobody reads. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX
from llama_deploy.message_queues.simple.topic import Group, Topic


def least_needed(topics: Iterable[Topic], *, now: float, idle_after: float) -> Topic | None:
    """Return the topic that is dropped to make room for another one. None: all are needed.

    Topics without messages go first, then those with messages that nobody has ever read or has read for long;
    of each kind first the one that was used least recently. Dead letters go last.

    Args:
        topics: All topics.
        now: The present time.
        idle_after: Seconds after which a topic that was read counts as read no longer.
    """

    def is_needed(topic: Topic) -> bool:
        if topic.is_held:
            return True
        return bool(topic.messages) and topic.was_read and now - topic.last_read <= idle_after

    def need(topic: Topic) -> tuple[bool, bool, float]:
        return bool(topic.messages), topic.name.endswith(DEAD_LETTERS_SUFFIX), topic.last_used

    return min((topic for topic in topics if not is_needed(topic)), key=need, default=None)


def idle_groups(topic: Topic, *, now: float, idle_after: float) -> list[Group]:
    """Return the groups of a topic that nobody has read for long, if another group of it is read."""
    idle = [
        group for group in topic.groups.values() if not group.is_held and now - group.last_read > idle_after
    ]
    return idle if len(idle) < len(topic.groups) else []
