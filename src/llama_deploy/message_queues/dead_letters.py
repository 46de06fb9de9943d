"""Which messages become dead letters: those that cannot be decoded, and those delivered too often."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llama_deploy.errors import MessageDecodeError
from llama_deploy.message_queues.base import DEAD_LETTERS_SUFFIX
from llama_deploy.messages import QueueMessage

logger = logging.getLogger(__name__)


def is_exhausted(topic: str, deliveries: int, limit: int) -> bool:
    """Return whether a message was delivered as often as it may be. Dead letters have no limit."""
    return deliveries >= limit and not topic.endswith(DEAD_LETTERS_SUFFIX)


def decode_message(
    body: Any, *, topic: str, decode: Callable[[Any], QueueMessage] = QueueMessage.decode
) -> QueueMessage | None:
    """Return the message in `body`. None: it is not a message, which is logged."""
    try:
        return decode(body)
    except MessageDecodeError as exc:
        logger.error(  # noqa: TRY400 - the error is in the message, not in the code that the traceback shows
            "a message of topic %r cannot be decoded and becomes a dead letter: %s",
            topic,
            exc,
            extra={"action": "reject", "topic": topic},
        )
        return None


def log_dead_letters(topic: str, *, count: int = 1) -> None:
    """Log that messages were delivered too often and are dead letters now."""
    if count:
        logger.error(
            "%d message(s) of topic %r reached the delivery limit and are dead letters now",
            count,
            topic,
            extra={"action": "dead_letter", "topic": topic},
        )
