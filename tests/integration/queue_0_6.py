"""A message queue as programs of 0.6 define one."""

# A type checker sees the contract of this release, which such a class does not have.
# mypy: ignore-errors

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from llama_deploy.message_consumers import BaseMessageQueueConsumer, StartConsumingCallable
from llama_deploy.message_queues import AbstractMessageQueue
from llama_deploy.messages import QueueMessage


class OwnConfig(BaseModel):
    """Settings of a queue as 0.6 programs wrote them."""

    name: str = "own"


class OwnQueue(AbstractMessageQueue):
    """A queue with the five methods of 0.6 and nothing else, over memory that all objects share."""

    topics: dict[str, asyncio.Queue[str]] = {}  # noqa: RUF012 - as a user writes it

    def __init__(self) -> None:
        self._consumers: dict[str, BaseMessageQueueConsumer] = {}
        self.cleaned = False

    async def _publish(self, message: QueueMessage, topic: str) -> Any:
        self.topics.setdefault(topic, asyncio.Queue()).put_nowait(message.model_dump_json())

    async def register_consumer(
        self, consumer: BaseMessageQueueConsumer, topic: str
    ) -> StartConsumingCallable:
        self._consumers[consumer.id_] = consumer

        async def start_consuming() -> None:
            while consumer.id_ in self._consumers:
                text = await self.topics.setdefault(topic, asyncio.Queue()).get()
                await consumer.process_message(QueueMessage.model_validate_json(text))

        return start_consuming

    async def deregister_consumer(self, consumer: BaseMessageQueueConsumer) -> Any:
        self._consumers.pop(consumer.id_, None)

    async def cleanup(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature of 0.6
        self.cleaned = True

    def as_config(self) -> BaseModel:
        return OwnConfig()


def new_queue() -> AbstractMessageQueue:
    """Return a queue over the memory that all of them share."""
    return OwnQueue()
