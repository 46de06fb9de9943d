"""The queue over RabbitMQ keeps the contract, with a real broker."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract
from tests.contract.connections import connecting
from tests.servers.rabbitmq import RabbitMQServer

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


class TestRabbitMQ(MessageQueueContract):
    # The bound is approximate, and a full topic takes messages again when it has shrunk to four fifths.
    max_messages_per_topic = None

    @pytest.fixture
    async def connect(self, server: RabbitMQServer) -> AsyncIterator[Connect]:
        config = RabbitMQMessageQueueConfig(
            url=server.url,
            exchange_name=f"contract{next(_NUMBERS)}",
            visibility_timeout=self.visibility_timeout,
            max_deliveries=self.max_deliveries,
        )
        async with connecting(config) as connect:
            yield connect
