"""Outages of RabbitMQ, and of the connections to it, lose no message."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.http.control_plane_server import ControlPlaneServer
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.message_queues.rabbitmq import RabbitMQMessageQueueConfig
from llama_deploy.messages import QueueMessage
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.queue_load import Pace
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.in_process import LEASE, Stack, result_of
from tests.integration.numbered import TOPIC
from tests.servers.rabbitmq import RabbitMQServer

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQServer]:
    with RabbitMQServer(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


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


class TestOutages(MessageQueueOutages):
    kills = 2
    cuts = 10
    delay = 0.03
    # An interrupted reader would wait for the visibility timeout.
    pace = Pace(max_ahead=500, step_seconds=40.0, rest_seconds=60.0, interrupts=False)

    @pytest.fixture
    def broker(self, server: RabbitMQServer) -> RabbitMQServer:
        return server

    @pytest.fixture(autouse=True)
    def _exchange(self, config: RabbitMQMessageQueueConfig) -> None:
        self.config = config

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return over(self.config, port, **fields)

    async def ready_to_be_killed(self, broker: RabbitMQServer) -> None:  # type: ignore[override]
        # RabbitMQ itself forgets a queue that it has created in the last three seconds.
        await eventually(lambda: broker.remembers(f"{self.config.exchange_name}:{TOPIC}"))


async def test_a_publication_into_silence_ends(
    server: RabbitMQServer, config: RabbitMQMessageQueueConfig, proxy: TcpProxy
) -> None:
    config = over(config, await proxy.start(server.port), heartbeat=60, retry_seconds=0.6)
    async with await config.connect() as queue:
        await queue.publish(QueueMessage(), TOPIC)
        proxy.hold(new=False)
        queue_name = re.escape(f"{config.exchange_name}:{TOPIC}")
        with pytest.raises(UnavailableError, match=f"'{queue_name}'.* leader.* alarm") as caught:
            await queue.publish(QueueMessage(), TOPIC)
        assert caught.value.retriable
        # The silent connection still stands; the next publication uses another one.
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
