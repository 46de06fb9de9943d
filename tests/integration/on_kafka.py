"""What the tests of the queue over Kafka share."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig
from llama_deploy.messages import QueueMessage

TOPIC = "namespace.service"


def settings(url: str, **fields: Any) -> KafkaMessageQueueConfig:
    defaults = {"visibility_timeout": 30.0, "partitions": 4, "session_timeout": 3.0, "poll_seconds": 0.1}
    return KafkaMessageQueueConfig(url=url, **{**defaults, **fields})


def numbered(number: int) -> QueueMessage:
    return QueueMessage(data={"number": number})


def number_of(delivery: Delivery) -> int:
    number: int = delivery.message.data["number"]
    return number


async def receive(subscription: Subscription, most: int = 1) -> list[Delivery]:
    async with asyncio.timeout(20):
        return await subscription.receive(most)


async def take(subscription: Subscription, count: int) -> list[int]:
    """Receive and acknowledge `count` messages; return their numbers, sorted."""
    numbers: list[int] = []
    while len(numbers) < count:
        for delivery in await receive(subscription, count - len(numbers)):
            numbers.append(number_of(delivery))
            await delivery.ack()
    return sorted(numbers)
