"""The queue over Kafka keeps the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from llama_deploy.message_queues.kafka import KafkaMessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract
from tests.contract.connections import connecting
from tests.servers.kafka import KafkaServer


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


class TestKafkaQueue(MessageQueueContract):
    is_ordered = False
    visibility_timeout = 1.0
    max_messages_per_topic = None  # Kafka's topics are bounded by age and size only

    @pytest.fixture
    def config(self, server: KafkaServer) -> KafkaMessageQueueConfig:
        return KafkaMessageQueueConfig(
            url=server.url,
            partitions=4,
            session_timeout=3.0,
            poll_seconds=0.1,
            visibility_timeout=self.visibility_timeout,
            max_deliveries=self.max_deliveries,
        )

    @pytest.fixture
    async def connect(self, config: KafkaMessageQueueConfig) -> AsyncIterator[Connect]:
        async with connecting(config) as connect:
            yield connect
