"""What the tests of the queue on Amazon SQS share."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

from aiobotocore.session import get_session

from llama_deploy.message_queues.aws import AWSMessageQueueConfig


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
