"""The simple queue keeps the contract, over HTTP and in process, with a journal and without."""

from __future__ import annotations

import subprocess
import sys
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

OF_A_USER = """
import pytest_asyncio
from llama_deploy.message_queues import LocalMessageQueue, SimpleMessageQueueConfig
from llama_deploy.message_queues.simple.host import BrokerHost
from llama_deploy.testing.message_queue_suite import MessageQueueContract

class TestMine(MessageQueueContract):
    @pytest_asyncio.fixture
    async def connect(self):
        config = SimpleMessageQueueConfig()
        host = await BrokerHost.start(config)

        async def open_queue():
            return LocalMessageQueue(host.broker, config)

        yield open_queue
        await host.close()

    def test_asserts_say_what_they_compare(self):
        from llama_deploy.testing import message_queue_suite, state_store_suite

        for suite in (message_queue_suite, state_store_suite):
            assert type(suite.__loader__).__name__ == "AssertionRewritingHook"
"""


def test_the_suite_runs_with_the_defaults_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = strict\n")
    (tmp_path / "test_mine.py").write_text(OF_A_USER)
    wanted = "arrives or callback or asserts"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted, "test_mine.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


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
