"""The limits of the simple queue's broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_NAME_LENGTH: Final = 255
"""The most characters in the name of a topic or a group."""
MAX_HANDOUT_BYTES: Final = 4 * 1024 * 1024
"""With how many bytes of messages an answer to `receive` is full. So it holds one message more at most."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What the broker's memory may hold, and how often and how long it waits for a settlement."""

    max_messages_per_topic: int = 100_000
    """Ready, delayed and in flight together; a further one is refused."""
    max_bytes_per_topic: int = 256 * 1024 * 1024
    """The size of these messages together. A single message that is larger is refused for good."""
    max_bytes: int = 1024 * 1024 * 1024
    """The size of the messages of all topics together. When they are more, each topic with messages may hold
    an equal share of it, so a topic that holds little is not refused because of others."""
    max_dead_letters: int = 1_000
    """Dead letters kept per topic, at least 1, within `max_bytes_per_topic`; the oldest makes room for a
    further one."""
    max_topics: int = 10_000
    """Topics in all. A further one takes the place of one without messages or without readers; if there is
    none it is refused, unless it is to hold dead letters."""
    idle_after: float = 600.0
    """Seconds after which a topic or a group that nobody reads may lose its messages, if there is no room."""
    max_deliveries: int = 10
    """After so many deliveries without an ack a message becomes a dead letter."""
    visibility_timeout: float = 5.0
    """Seconds for which a delivery stays with its consumer, unless the consumer says otherwise."""
