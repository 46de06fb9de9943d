"""What happens to RabbitMQ, or to the way to it, happens to no message."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.server import ControlPlaneServer
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import AbstractMessageQueue, Subscription
from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueue, RabbitMQMessageQueueConfig
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from tests.integration.in_process import LEASE, Stack, result_of
from tests.servers.proxy import TcpProxy
from tests.servers.rabbitmq import RabbitMQServer

TOPIC = "namespace.service"
PUBLISHERS = 8
MOST_AHEAD = 500
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    async with TcpProxy() as proxy:
        yield proxy


@pytest.fixture
def config(server: RabbitMQServer) -> RabbitMQMessageQueueConfig:
    return RabbitMQMessageQueueConfig(
        url=server.url,
        exchange_name=f"faults{next(_NUMBERS)}",
        heartbeat=1,
        retry_seconds=60.0,
        max_deliveries=1000,
    )


def over(config: RabbitMQMessageQueueConfig, port: int, **fields: Any) -> RabbitMQMessageQueueConfig:
    return RabbitMQMessageQueueConfig(**{**config.model_dump(), "port": port, **fields})


class Load:
    """Publishers and a reader that count what was accepted and what came."""

    def __init__(self, publisher: AbstractMessageQueue, subscription: Subscription) -> None:
        self.accepted: set[int] = set()
        self.came: Counter[int] = Counter()
        self._publisher = publisher
        self._subscription = subscription

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        reading = asyncio.create_task(self._read())
        publishing = [asyncio.create_task(self._publish(number)) for number in range(PUBLISHERS)]
        try:
            yield
            await self._stop(publishing)
            await eventually(lambda: self.accepted <= set(self.came), seconds=30)
        finally:
            await self._stop([reading, *publishing])

    async def goes_on(self) -> None:
        """Wait until 50 more messages were accepted and 50 more came."""
        accepted, came = len(self.accepted), len(self.came)
        await eventually(lambda: min(len(self.accepted) - accepted, len(self.came) - came) >= 50, seconds=40)

    async def _publish(self, number: int) -> None:
        while True:
            await self._publisher.publish(QueueMessage(data={"number": number}), TOPIC)
            self.accepted.add(number)
            number += PUBLISHERS
            await eventually(lambda: len(self.accepted) - len(self.came) < MOST_AHEAD, seconds=60)

    async def _read(self) -> None:
        while True:
            for delivery in await self._subscription.receive(16):
                self.came[delivery.message.data["number"]] += 1
                await delivery.ack()

    @staticmethod
    async def _stop(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@asynccontextmanager
async def under_load(
    publisher: RabbitMQMessageQueueConfig, reader: RabbitMQMessageQueueConfig
) -> AsyncIterator[Load]:
    """Run a load; at its end everything that was accepted must have come."""
    async with (
        await publisher.connect() as publishing,
        await reader.connect() as reading,
        await reading.subscribe(TOPIC) as subscription,
    ):
        assert publishing.durable
        load = Load(publishing, subscription)
        async with load.running():
            await load.goes_on()
            yield load
            await load.goes_on()


async def test_a_killed_broker_loses_nothing_that_it_accepted(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig
) -> None:
    async with under_load(config, config) as load:
        # RabbitMQ itself forgets a queue that it has created in the last three seconds.
        await eventually(lambda: server.remembers(f"{config.exchange_name}:{TOPIC}"))
        for _ in range(2):
            server.kill()
            await asyncio.to_thread(server.start)
            await load.goes_on()


async def test_cut_connections_lose_nothing(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
) -> None:
    config = over(config, await proxy.start(server.port))
    async with under_load(config, config) as load:
        for _ in range(10):
            proxy.cut()
            await eventually(lambda: proxy.connections >= 2)
            proxy.cut()
            await load.goes_on()


async def test_a_slow_connection_works(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
) -> None:
    config = over(config, await proxy.start(server.port))
    async with under_load(config, config) as load:
        proxy.delay = 0.03
        await load.goes_on()


@pytest.mark.parametrize("side", ["publisher", "reader"])
async def test_a_half_open_connection_is_found_and_replaced(
    server: RabbitMQServer,
    config: RabbitMQMessageQueueConfig,
    proxy: TcpProxy,
    caplog: pytest.LogCaptureFixture,
    side: str,
) -> None:
    held = over(config, await proxy.start(server.port))
    ends = (held, config) if side == "publisher" else (config, held)
    with caplog.at_level(logging.INFO):
        async with under_load(*ends):
            proxy.hold()
            await eventually(lambda: "is lost" in caplog.text, seconds=20)
            proxy.resume()


async def test_a_publication_into_silence_ends(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
) -> None:
    config = over(config, await proxy.start(server.port), heartbeat=60, retry_seconds=0.6)
    async with await config.connect() as queue:
        await queue.publish(QueueMessage(), TOPIC)
        proxy.hold()
        with pytest.raises(UnavailableError) as caught:
            await queue.publish(QueueMessage(), TOPIC)
        assert caught.value.retriable
        assert isinstance(queue, RabbitMQMessageQueue)
        assert queue._publishing.present is None, "the next publication would wait for the same silence"
        proxy.resume()
        await queue.publish(QueueMessage(), TOPIC)


async def test_what_a_silent_member_holds_goes_to_another(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
) -> None:
    held = over(config, await proxy.start(server.port))
    async with await config.connect() as queue, await held.connect() as silent:
        subscription = await silent.subscribe(TOPIC)
        await queue.publish(QueueMessage(), TOPIC)
        (delivery,) = await subscription.receive(1)
        await delivery.extend(3600.0)
        proxy.hold()
        async with await queue.subscribe(TOPIC) as other, asyncio.timeout(20):
            (again,) = await other.receive(1)
            await again.ack()
        assert again.attempt == 2
        proxy.cut()
        proxy.resume()
        await delivery.ack()


class Place(Workflow):
    """Says which instance ran it."""

    name = ""

    @step
    async def run_here(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=[self.name, ev.get("number")])


class Here(Place):
    name = "here"


class There(Place):
    name = "there"


async def test_two_instances_share_the_tasks(config: RabbitMQMessageQueueConfig, tmp_path: Path) -> None:
    async with (
        await config.connect() as queue,
        await SQLiteStateStore.connect(f"sqlite:///{tmp_path}/state.db") as store,
        ControlPlaneServer(
            queue, state_store=store, config=ControlPlaneConfig(port=0, lease_seconds=LEASE)
        ) as server,
    ):
        stack = Stack(queue, store, server)
        async with stack.serving(stack.service(Here())), stack.serving(stack.service(There())):
            tasks = [await stack.submit(number=number) for number in range(200)]
            results = [result_of(await stack.end(task)) for task in tasks]
    assert [number for _, number in results] == list(range(200))
    shares = Counter(name for name, _ in results)
    assert min(shares["here"], shares["there"]) >= 60, shares
