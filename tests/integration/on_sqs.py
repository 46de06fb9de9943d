"""What the tests of the queue on Amazon SQS share."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiobotocore.session import get_session

from llama_deploy.message_queues.aws import AWSMessageQueueConfig
from llama_deploy.message_queues.base import Delivery, Subscription
from llama_deploy.messages import QueueMessage

TOPIC = "namespace.service"


def settings(endpoint_url: str, **fields: Any) -> AWSMessageQueueConfig:
    usual = {
        "aws_access_key_id": "key",
        "aws_secret_access_key": "secret",
        "visibility_timeout": 2,
        # The server of the tests does not notice that who waited is gone.
        "wait_seconds": 1,
        "group_seconds": 0.1,
    }
    return AWSMessageQueueConfig(endpoint_url=endpoint_url, **{**usual, **fields})


def plain_client(endpoint_url: str) -> AbstractAsyncContextManager[Any]:
    """Return a client of the SDK, to look at the server with."""
    client: AbstractAsyncContextManager[Any] = get_session().create_client(
        "sqs", **settings(endpoint_url).client_options
    )
    return client


async def count_of(endpoint_url: str, attribute: str, name: str = "namespace--service") -> int:
    """Return a number that the server tells of a queue; 0 if there is no such queue."""
    async with plain_client(endpoint_url) as client:
        try:
            url = (await client.get_queue_url(QueueName=name))["QueueUrl"]
        except client.exceptions.QueueDoesNotExist:
            return 0
        found = await client.get_queue_attributes(QueueUrl=url, AttributeNames=[attribute])
    return int(found["Attributes"][attribute])


def numbered(number: int) -> QueueMessage:
    return QueueMessage(data={"number": number})


def number_of(delivery: Delivery) -> int:
    number: int = delivery.message.data["number"]
    return number


async def receive(subscription: Subscription, most: int = 1) -> list[Delivery]:
    async with asyncio.timeout(10):
        return await subscription.receive(most)
