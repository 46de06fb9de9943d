"""Outages of Redis, and of the connections to it, lose no message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.numbered import TOPIC, number_of, numbered, receive
from tests.integration.on_redis import settings
from tests.servers.redis import DURABLE, RedisServer


class TestOutages(MessageQueueOutages):
    max_repeats = 5

    @pytest.fixture
    def broker(self, tmp_path: Path) -> Iterator[RedisServer]:
        with RedisServer(tmp_path, *DURABLE) as broker:
            yield broker

    @pytest.fixture
    def forgetful_broker(self, tmp_path: Path) -> Iterator[RedisServer]:
        with RedisServer(tmp_path) as broker:
            yield broker

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return settings(f"redis://127.0.0.1:{port}", **{"timeout": 0.5, **fields})

    async def test_what_was_sent_into_a_dead_connection_comes_again_at_once(
        self, broker: RedisServer, proxy: TcpProxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with (
            await settings(broker.url).connect() as publisher,
            await settings(url, timeout=0.3, visibility_timeout=3600.0).connect() as queue,
            await queue.subscribe(TOPIC) as subscription,
        ):
            await publisher.publish(numbered(0), TOPIC)
            (held,) = await receive(subscription)
            waiting = asyncio.create_task(receive(subscription))
            await eventually(lambda: proxy.connections == 2)
            proxy.hold()
            await publisher.publish(numbered(1), TOPIC)
            await eventually(lambda: "is lost" in caplog.text)
            proxy.resume()
            (delivery,) = await waiting
            assert (number_of(delivery), delivery.attempt) == (1, 2)
            await held.ack()
            await delivery.ack()

    async def test_a_server_without_a_disk_is_not_durable(
        self, forgetful_broker: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with await settings(forgetful_broker.url).connect() as queue:
            assert not queue.durable
        assert "keeps nothing on disk" in caplog.text
