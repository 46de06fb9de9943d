"""Messages that carry a number, so that a test sees which of them have come."""

from __future__ import annotations

import asyncio
from typing import Final

from llama_deploy.message_queues.base import AbstractMessageQueue, Delivery, Subscription
from llama_deploy.messages import QueueMessage

DEADLINE: Final = 20.0
"""Seconds within which everything must have happened."""


def numbered(number: int) -> QueueMessage:
    """Return a message with a number."""
    return QueueMessage(data={"number": number})


def number_of(delivery: Delivery) -> int:
    """Return the number of a delivered message."""
    number: int = delivery.message.data["number"]
    return number


async def publish(queue: AbstractMessageQueue, topic: str, *numbers: int) -> None:
    """Publish messages, one after the other."""
    for number in numbers:
        await queue.publish(numbered(number), topic)


async def receive(subscription: Subscription, max_messages: int = 1) -> list[Delivery]:
    """Receive messages before the deadline."""
    async with asyncio.timeout(DEADLINE):
        return await subscription.receive(max_messages)


async def receive_one(subscription: Subscription) -> Delivery:
    """Receive one message before the deadline."""
    (delivery,) = await receive(subscription)
    return delivery


async def take(subscription: Subscription, count: int, *, batch: int = 16) -> list[int]:
    """Receive and acknowledge `count` messages; return their numbers in the order of their arrival."""
    numbers: list[int] = []
    while len(numbers) < count:
        for delivery in await receive(subscription, min(batch, count - len(numbers))):
            numbers.append(number_of(delivery))
            await delivery.ack()
    return numbers
