"""What happens to Kafka, or to the way there, happens to no message."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, Subscription
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from tests.integration.on_kafka import TOPIC, number_of, numbered, settings
from tests.servers.kafka import KafkaServer
from tests.servers.proxy import TcpProxy


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path, durable=True) as server:
        yield server


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    async with TcpProxy() as proxy:
        yield proxy


@pytest.fixture
async def behind(tmp_path: Path, proxy: TcpProxy) -> AsyncIterator[KafkaServer]:
    """A broker to which all clients come through the proxy."""
    server = KafkaServer(tmp_path)
    server.advertised_port = await proxy.start(server.port)
    with server:
        yield server


class Load:
    """Publishers and a reader that count what was accepted and what came."""

    def __init__(self, publisher: AbstractMessageQueue, subscription: Subscription) -> None:
        self.accepted: set[int] = set()
        self.came: Counter[int] = Counter()
        self._publisher = publisher
        self._subscription = subscription

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._publish(number)) for number in range(8)]
            tasks.append(group.create_task(self._read()))
            yield
            for task in tasks:
                task.cancel()

    async def goes_on(self) -> None:
        """Wait until 50 more messages were accepted and 50 more came."""
        accepted, came = len(self.accepted), len(self.came)
        await eventually(lambda: min(len(self.accepted) - accepted, len(self.came) - came) >= 50, seconds=30)

    async def read_the_rest(self) -> None:
        """Read until all that was accepted has come."""
        async with asyncio.timeout(30):
            while not self.accepted <= set(self.came):
                await self._read_some()

    async def _publish(self, number: int) -> None:
        while True:
            await self._publisher.publish(numbered(number), TOPIC)
            self.accepted.add(number)
            number += 8

    async def _read(self) -> None:
        while True:
            await self._read_some()

    async def _read_some(self) -> None:
        for delivery in await self._subscription.receive(16):
            self.came[number_of(delivery)] += 1
            await delivery.ack()


@asynccontextmanager
async def under_load(server: KafkaServer) -> AsyncIterator[Load]:
    """Run a load; at its end everything accepted must have come, and nothing else is left."""
    config = settings(server.url, timeout=1.0, retry_seconds=30.0)
    async with (
        await config.connect() as publisher,
        await config.connect() as reader,
        await reader.subscribe(TOPIC) as subscription,
    ):
        load = Load(publisher, subscription)
        async with load.running():
            await load.goes_on()
            yield load
            await load.goes_on()
        await load.read_the_rest()


async def test_a_killed_server_loses_nothing_that_it_accepted(server: KafkaServer) -> None:
    async with under_load(server) as load:
        for _ in range(2):
            server.kill()
            await asyncio.to_thread(server.start)
            await load.goes_on()


async def test_cut_connections_lose_nothing(behind: KafkaServer, proxy: TcpProxy) -> None:
    async with under_load(behind) as load:
        for _ in range(5):
            proxy.cut()
            await eventually(lambda: proxy.connections >= 2)
            proxy.cut()
            await load.goes_on()


async def test_a_slow_connection_works(behind: KafkaServer, proxy: TcpProxy) -> None:
    async with under_load(behind) as load:
        proxy.delay = 0.05
        await load.goes_on()


async def test_a_half_open_connection_is_found_and_replaced(
    behind: KafkaServer, proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with under_load(behind) as load:
            proxy.hold()
            await eventually(lambda: "is lost" in caplog.text, seconds=20)
            proxy.resume()
            await load.goes_on()
    assert "is back" in caplog.text


async def test_a_server_that_does_not_answer_is_an_error_in_time(server: KafkaServer) -> None:
    config = settings(server.url, timeout=0.5, retry_seconds=1.0)
    async with await config.connect() as queue:
        await queue.publish(QueueMessage(), TOPIC)
        server.pause()
        with pytest.raises(UnavailableError, match=str(server.port)):
            await queue.publish(QueueMessage(), TOPIC)
        server.resume()
        await queue.publish(QueueMessage(), TOPIC)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        await settings(f"127.0.0.1:{free_port()}", retry_seconds=0.2).connect()
