"""What happens to Kafka, or to the way there, happens to no message."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from llama_deploy.errors import UnavailableError
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.processes import free_port
from tests.integration.load import Load, Pace, cut_connections, hold_connections, kill_and_start, load_over
from tests.integration.numbered import TOPIC
from tests.integration.on_kafka import settings
from tests.servers.kafka import KafkaServer
from tests.servers.proxy import TcpProxy

PACE = Pace(most_ahead=100)
"""The store of a durable broker takes one request at a time; publishers without a bound starve the reader."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer(tmp_path, durable=True) as server:
        yield server


@pytest.fixture
async def behind(tmp_path: Path, proxy: TcpProxy) -> AsyncIterator[KafkaServer]:
    """A broker to which all clients come through the proxy."""
    server = KafkaServer(tmp_path)
    server.advertised_port = await proxy.start(server.port)
    with server:
        yield server


def under_load(server: KafkaServer) -> AbstractAsyncContextManager[Load]:
    config = settings(server.url, timeout=1.0, retry_seconds=30.0)
    return load_over(config, config, PACE)


async def test_a_killed_server_loses_nothing_that_it_accepted(server: KafkaServer) -> None:
    async with under_load(server) as load:
        await kill_and_start(server, load, times=2)


async def test_cut_connections_lose_nothing(behind: KafkaServer, proxy: TcpProxy) -> None:
    async with under_load(behind) as load:
        await cut_connections(proxy, load, times=5)


async def test_a_slow_connection_works(behind: KafkaServer, proxy: TcpProxy) -> None:
    async with under_load(behind) as load:
        proxy.delay = 0.05
        await load.goes_on()


async def test_a_half_open_connection_is_found_and_replaced(
    behind: KafkaServer, proxy: TcpProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with under_load(behind) as load:
            await hold_connections(proxy, caplog)
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
