"""Messages that carry a number, so that a test sees which came."""

from __future__ import annotations

import asyncio
from typing import Final

from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery, Subscription
from llama_deploy.messages import QueueMessage

TOPIC: Final = "namespace.service"
PATIENCE_SECONDS: Final = 20.0


def numbered(number: int) -> QueueMessage:
    return QueueMessage(data={"number": number})


def number_of(delivery: Delivery) -> int:
    number: int = delivery.message.data["number"]
    return number


async def publish(queue: AbstractMessageQueue, *numbers: int, topic: str = TOPIC) -> None:
    for number in numbers:
        await queue.publish(numbered(number), topic)


async def receive(subscription: Subscription, most: int = 1) -> list[Delivery]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await subscription.receive(most)


async def take(subscription: Subscription, count: int) -> list[int]:
    """Receive and acknowledge `count` messages; return their numbers as they came."""
    numbers: list[int] = []
    while len(numbers) < count:
        for delivery in await receive(subscription, count - len(numbers)):
            numbers.append(number_of(delivery))
            await delivery.ack()
    return numbers
