"""NATS JetStream keeps the contract, over a real server, with its streams in files and in memory."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar, Literal

import pytest

from llama_deploy.message_queues.nats import NatsMessageQueueConfig
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract
from tests.contract.connections import connecting
from tests.servers.nats import NatsServer

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


class TestInFiles(MessageQueueContract):
    storage: ClassVar[Literal["file", "memory"]] = "file"

    @pytest.fixture
    async def connect(self, server: NatsServer) -> AsyncIterator[Connect]:
        config = NatsMessageQueueConfig(
            url=server.url,
            stream=f"contract{next(_NUMBERS)}",
            storage=self.storage,
            visibility_timeout=self.visibility_timeout,
            max_deliveries=self.max_deliveries,
            max_messages_per_topic=self.max_messages_per_topic,
        )
        async with connecting(config) as connect:
            yield connect


class TestInMemory(TestInFiles):
    storage = "memory"
