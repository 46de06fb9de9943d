"""What happens to Redis, or to the way there, happens to no message."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from llama_deploy.errors import UnavailableError
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from tests.integration.load import Load, cut_connections, hold_connections, kill_and_start, load_over
from tests.integration.numbered import TOPIC, number_of, numbered, receive
from tests.integration.on_redis import settings
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


def under_load(publisher_url: str, reader_url: str) -> AbstractAsyncContextManager[Load]:
    return load_over(settings(publisher_url, timeout=0.5), settings(reader_url, timeout=0.5))


async def test_a_killed_server_loses_nothing_that_it_accepted(server: RedisServer) -> None:
    async with under_load(server.url, server.url) as load:
        await kill_and_start(server, load, times=3)
    assert max(load.came.values()) <= 5


async def test_cut_connections_lose_nothing(server: RedisServer, proxy: TcpProxy) -> None:
    url = f"redis://127.0.0.1:{await proxy.start(server.port)}"
    async with under_load(url, url) as load:
        await cut_connections(proxy, load, times=20)


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
            await hold_connections(proxy, caplog)
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
        # Both must be there again before one settles: what all groups that it knows have settled, it deletes.
        for (delivery,) in await asyncio.gather(receive(subscription), receive(second)):
            assert number_of(delivery) == 1
            await delivery.ack()
