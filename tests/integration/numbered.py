"""Messages that carry a number, for one topic."""

from __future__ import annotations

from typing import Final

from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.testing import numbered_messages
from llama_deploy.testing.numbered_messages import number_of, numbered, receive, take

__all__ = ["TOPIC", "number_of", "numbered", "publish", "receive", "take"]

TOPIC: Final = "namespace.service"


async def publish(queue: AbstractMessageQueue, *numbers: int, topic: str = TOPIC) -> None:
    await numbered_messages.publish(queue, topic, *numbers)
