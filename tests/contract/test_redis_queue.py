"""The queue on Redis keeps the contract, on Valkey and on Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from llama_deploy.message_queues.redis import RedisMessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract
from tests.contract.connections import connecting
from tests.servers.redis import DATABASES, RedisServer


@pytest.fixture(scope="module")
def databases() -> Iterator[int]:
    """Numbers of databases that no test has used."""
    return iter(range(DATABASES))


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("valkey"), kind="valkey") as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), kind="redis") as server:
        yield server


class RedisContract(MessageQueueContract):
    @pytest.fixture
    def config(self, server: RedisServer, databases: Iterator[int]) -> RedisMessageQueueConfig:
        return RedisMessageQueueConfig(
            url=server.url,
            db=next(databases),
            max_messages_per_topic=self.max_messages_per_topic,
            visibility_timeout=self.visibility_timeout,
            max_deliveries=self.max_deliveries,
        )

    @pytest.fixture
    async def connect(self, config: RedisMessageQueueConfig) -> AsyncIterator[Connect]:
        async with connecting(config) as connect:
            yield connect


class TestOnValkey(RedisContract):
    @pytest.fixture
    def server(self, valkey: RedisServer) -> RedisServer:
        return valkey


class TestOnRedis(RedisContract):
    @pytest.fixture
    def server(self, redis: RedisServer) -> RedisServer:
        return redis
