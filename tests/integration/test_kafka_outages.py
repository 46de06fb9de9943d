"""Outages of Kafka, and of the connections to it, lose no message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.queue_load import Pace
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.on_kafka import settings
from tests.servers.kafka import KafkaServer


class TestOutages(MessageQueueOutages):
    kills = 2
    cuts = 5
    # The store of a durable broker takes one request at a time; unlimited publishers starve the reader.
    pace = Pace(max_ahead=100)

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
