"""What the tests of the queue on Redis share."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.message_queues.redis import RedisMessageQueueConfig
from llama_deploy.messages import QueueMessage

TOPIC = "namespace.service"


def settings(url: str, **fields: Any) -> RedisMessageQueueConfig:
    return RedisMessageQueueConfig(url=url, **{"visibility_timeout": 2.0, **fields})


def numbered(number: int) -> QueueMessage:
    return QueueMessage(data={"number": number})


def number_of(delivery: Delivery) -> int:
    number: int = delivery.message.data["number"]
    return number


async def receive(subscription: Subscription, most: int = 1) -> list[Delivery]:
    async with asyncio.timeout(10):
        return await subscription.receive(most)
