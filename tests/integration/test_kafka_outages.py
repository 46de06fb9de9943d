"""Outages of Kafka, and of the connections to it, lose no message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.queue_load import Pace
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.numbered import TOPIC, publish, take
from tests.integration.on_kafka import settings
from tests.servers.kafka import KafkaServer


class TestOutages(MessageQueueOutages):
    kills = 2
    cuts = 5
    # The store of a durable broker takes one request at a time; unlimited publishers starve the reader.
    pace = Pace(max_ahead=100, step=20, step_seconds=60.0, rest_seconds=60.0)

    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[KafkaServer]:
        with KafkaServer(tmp_path, durable=True) as broker:
            yield broker

    @pytest.fixture
    def forgetful_broker(self, tmp_path: Path) -> Iterator[KafkaServer]:
        with KafkaServer(tmp_path) as broker:
            yield broker

    @pytest.fixture
    async def proxy(self, broker: KafkaServer) -> AsyncIterator[TcpProxy]:
        """Kafka tells its clients where to go, so all of them come through the proxy."""
        async with TcpProxy() as proxy:
            broker.kill()
            broker.advertised_port = await proxy.start(broker.port)
            broker.start()
            yield proxy

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return settings(f"127.0.0.1:{port}", **{"timeout": 1.0, "retry_seconds": 30.0, **fields})

    async def test_a_reader_starts_over_in_a_topic_that_was_forgotten(
        self, forgetful_broker: KafkaServer
    ) -> None:
        """The offset that was committed lies behind the end of the topic as it is now."""
        config = self.settings(forgetful_broker.port, partitions=1)
        async with await config.connect() as queue:
            await publish(queue, 0)
            consumer = AIOKafkaConsumer(
                bootstrap_servers=f"127.0.0.1:{forgetful_broker.port}",
                group_id=TOPIC,
                enable_auto_commit=False,
            )
            await consumer.start()
            try:
                consumer.assign([TopicPartition(TOPIC, 0)])
                await consumer.commit({TopicPartition(TOPIC, 0): 50})
            finally:
                await consumer.stop()
            async with await queue.subscribe(TOPIC) as subscription:
                await publish(queue, 1)
                assert await take(subscription, 2) == [0, 1]
