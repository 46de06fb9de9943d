"""The simple queue keeps the contract, over HTTP and in process, with a journal and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from llama_deploy.message_queues import (
    AbstractMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.testing.message_queue_suite import Connect, MessageQueueContract


class SimpleQueueContract(MessageQueueContract):
    journal_name: ClassVar[str | None] = None

    @pytest.fixture
    async def server(self, tmp_path: Path) -> AsyncIterator[SimpleMessageQueueServer]:
        config = SimpleMessageQueueConfig(
            port=0,
            journal_path=tmp_path / self.journal_name if self.journal_name else None,
            max_messages_per_topic=self.max_messages_per_topic,
            visibility_timeout=self.visibility_timeout,
            max_deliveries=self.max_deliveries,
        )
        async with SimpleMessageQueueServer(config) as server:
            yield server


class TestOverHttp(SimpleQueueContract):
    @pytest.fixture
    def connect(self, server: SimpleMessageQueueServer) -> Connect:
        return partial(SimpleMessageQueue.connect, server.config)


class TestOverHttpWithJournal(TestOverHttp):
    journal_name = "queue.db"


class TestInProcess(SimpleQueueContract):
    @pytest.fixture
    def connect(self, server: SimpleMessageQueueServer) -> Connect:
        async def open_queue() -> AbstractMessageQueue:
            return server.local_queue()

        return open_queue


class TestInProcessWithJournal(TestInProcess):
    journal_name = "queue.db"
