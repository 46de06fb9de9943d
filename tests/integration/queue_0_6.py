"""A message queue as programs of 0.6 define one."""

# A type checker sees the contract of this release, which such a class does not have.
# mypy: ignore-errors
# ruff: noqa: ARG002 - the signatures of that time

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from llama_deploy.message_consumers import BaseMessageQueueConsumer, StartConsumingCallable
from llama_deploy.message_queues import AbstractMessageQueue
from llama_deploy.message_queues.base import BaseMessageQueue
from llama_deploy.messages import QueueMessage


class OwnConfig(BaseModel):
    """Settings of a queue as 0.6 programs wrote them."""

    name: str = "own"


class OwnQueue(AbstractMessageQueue):
    """A queue with the five methods of 0.6 and nothing else, over memory that all objects share."""

    topics: dict[str, asyncio.Queue[str]] = {}  # noqa: RUF012 - as a user writes it

    failures = 0
    """How many calls still fail."""

    def __init__(self) -> None:
        super().__init__()
        self._consumers: dict[str, BaseMessageQueueConsumer] = {}
        self.cleaned = False

    async def _publish(self, message: QueueMessage, topic: str) -> Any:
        self.fail()
        self.topics.setdefault(topic, asyncio.Queue()).put_nowait(message.model_dump_json())

    def fail(self) -> None:
        if OwnQueue.failures > 0:
            OwnQueue.failures -= 1
            raise ConnectionError("no broker")

    async def register_consumer(
        self, consumer: BaseMessageQueueConsumer, topic: str
    ) -> StartConsumingCallable:
        self._consumers[consumer.id_] = consumer

        async def start_consuming() -> None:
            while consumer.id_ in self._consumers:
                self.fail()
                text = await self.topics.setdefault(topic, asyncio.Queue()).get()
                await consumer.process_message(QueueMessage.model_validate_json(text))

        return start_consuming

    async def deregister_consumer(self, consumer: BaseMessageQueueConsumer) -> Any:
        self._consumers.pop(consumer.id_, None)

    async def cleanup(self, *args: Any, **kwargs: Any) -> None:
        self.cleaned = True

    def as_config(self) -> BaseModel:
        return OwnConfig()


def new_queue() -> AbstractMessageQueue:
    """Return a queue over the memory that all of them share."""
    return OwnQueue()


class OlderQueue(BaseMessageQueue):
    """A queue as programs before 0.4 define one, over the same memory."""

    def __init__(self) -> None:
        self.queue = OwnQueue()
        self.cleaned = False

    async def _publish(self, message: QueueMessage, topic: str) -> Any:
        await self.queue._publish(message, topic)

    async def register_consumer(
        self, consumer: BaseMessageQueueConsumer, topic: str | None = None
    ) -> StartConsumingCallable:
        return await self.queue.register_consumer(consumer, topic)

    async def deregister_consumer(self, consumer: BaseMessageQueueConsumer) -> Any:
        await self.queue.deregister_consumer(consumer)

    async def processing_loop(self) -> None: ...

    async def launch_local(self) -> asyncio.Task: ...

    async def launch_server(self) -> None: ...

    async def cleanup_local(self, message_types: list[str], *args: Any, **kwargs: Any) -> None:
        self.cleaned = True

    def as_config(self) -> BaseModel:
        return OwnConfig()


def older_queue() -> AbstractMessageQueue:
    """Return an older queue over the memory that all of them share."""
    return OlderQueue()
