"""What happens to Redis, or to the way there, happens to no message."""

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
from tests.integration.on_redis import TOPIC, number_of, numbered, receive, settings
from tests.servers.proxy import TcpProxy
from tests.servers.redis import DURABLE, RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, *DURABLE) as server:
        yield server


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    async with TcpProxy() as proxy:
        yield proxy


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
async def under_load(publisher_url: str, reader_url: str) -> AsyncIterator[Load]:
    """Run a load; at its end everything accepted must have come, and nothing else is left."""
    async with (
        await settings(publisher_url, timeout=0.5).connect() as publisher,
        await settings(reader_url, timeout=0.5).connect() as reader,
        await reader.subscribe(TOPIC) as subscription,
    ):
        assert publisher.durable
        load = Load(publisher, subscription)
        async with load.running():
            await load.goes_on()
            yield load
            await load.goes_on()
        await load.read_the_rest()


async def test_a_killed_server_loses_nothing_that_it_accepted(server: RedisServer) -> None:
    async with under_load(server.url, server.url) as load:
        for _ in range(3):
            server.kill()
            await asyncio.to_thread(server.start)
            await load.goes_on()
    assert max(load.came.values()) <= 5


async def test_cut_connections_lose_nothing(server: RedisServer, proxy: TcpProxy) -> None:
    url = f"redis://127.0.0.1:{await proxy.start(server.port)}"
    async with under_load(url, url) as load:
        for _ in range(20):
            proxy.cut()
            await eventually(lambda: proxy.connections >= 2)
            proxy.cut()
            await load.goes_on()


async def test_a_slow_connection_works(server: RedisServer, proxy: TcpProxy) -> None:
    url = f"redis://127.0.0.1:{await proxy.start(server.port)}"
    async with under_load(url, url) as load:
        proxy.delay = 0.05
        await load.goes_on()


async def test_a_half_open_connection_is_found_and_replaced(
    server: RedisServer, proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{await proxy.start(server.port)}"
    with caplog.at_level(logging.INFO):
        async with under_load(url, server.url) as load:
            proxy.hold()
            await eventually(lambda: "is lost" in caplog.text, seconds=20)
            proxy.resume()
            await load.goes_on()
    assert "is back" in caplog.text


async def test_what_was_sent_into_a_dead_connection_comes_again_at_once(
    server: RedisServer, proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://127.0.0.1:{await proxy.start(server.port)}"
    async with (
        await settings(server.url).connect() as publisher,
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


async def test_a_server_that_does_not_answer_is_an_error_in_time(server: RedisServer) -> None:
    config = settings(server.url, timeout=0.2, retry_seconds=0.5)
    async with await config.connect() as queue:
        await queue.publish(QueueMessage(), TOPIC)
        server.pause()
        with pytest.raises(UnavailableError, match=str(server.port)):
            await queue.publish(QueueMessage(), TOPIC)
        server.resume()
        await queue.publish(QueueMessage(), TOPIC)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        await settings(f"redis://127.0.0.1:{free_port()}", retry_seconds=0.2).connect()


async def test_what_a_server_forgets_is_made_again(
    forgetful: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        await settings(forgetful.url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
        await queue.subscribe(TOPIC, group="second") as second,
    ):
        assert not queue.durable
        assert "keeps nothing on disk" in caplog.text
        await queue.publish(numbered(0), TOPIC)
        (lost,) = await receive(subscription)
        forgetful.kill()
        await asyncio.to_thread(forgetful.start)
        await queue.publish(numbered(1), TOPIC)
        await lost.nack()
        for each in (subscription, second):
            (delivery,) = await receive(each)
            assert number_of(delivery) == 1
            await delivery.ack()
