"""Amazon SQS keeps the contract, over a service that is compatible with it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from llama_deploy.message_queues.aws import AWSMessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract
from tests.contract.connections import connecting
from tests.servers.sqs import SqsServer

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    with SqsServer(tmp_path_factory.mktemp("sqs")) as server:
        yield server


class TestSqs(MessageQueueContract):
    is_ordered = False
    visibility_timeout = 1.0  # the service knows whole seconds only
    max_messages_per_topic = None  # its queues have no bound

    @pytest.fixture
    async def connect(self, server: SqsServer) -> AsyncIterator[Connect]:
        config = AWSMessageQueueConfig(
            endpoint_url=server.endpoint_url,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            queue_prefix=f"contract{next(_NUMBERS)}-",
            visibility_timeout=int(self.visibility_timeout),
            max_deliveries=self.max_deliveries,
            # The server of the tests does not notice that who waited is gone.
            wait_seconds=1,
            group_seconds=0.1,
        )
        async with connecting(config) as connect:
            yield connect
