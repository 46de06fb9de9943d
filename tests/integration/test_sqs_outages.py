"""Outages of Amazon SQS, and of the connections to it, lose no message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.http.control_plane_server import ControlPlaneServer
from llama_deploy.message_queues.aws.connection import MAX_ENTRIES
from llama_deploy.message_queues.base import Delivery, MessageQueueConfig
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.message_queue_outages import MessageQueueOutages
from llama_deploy.testing.queue_load import Pace
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.integration.in_process import LEASE, Stack, result_of
from tests.integration.numbered import TOPIC, number_of, numbered, publish, receive
from tests.integration.on_sqs import count_of, settings
from tests.servers.sqs import SqsServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SqsServer]:
    with SqsServer(tmp_path) as server:
        yield server


class TestOutages(MessageQueueOutages):
    keeps_messages = False  # moto keeps everything in memory
    cuts = 10
    silence_seconds = 3.0  # moto is slow
    pace = Pace(publishers=4, max_messages=10, step=20, rest_seconds=60.0)

    @pytest.fixture
    def broker(self, server: SqsServer) -> SqsServer:
        return server

    def settings(self, port: int, **fields: Any) -> MessageQueueConfig:
        return settings(f"http://127.0.0.1:{port}", **{"timeout": 1.0, **fields})


async def test_what_was_on_its_way_into_a_cut_connection_comes_again(
    server: SqsServer, proxy: TcpProxy
) -> None:
    url = f"http://127.0.0.1:{await proxy.start(server.port)}"
    async with (
        await settings(server.endpoint_url).connect() as publisher,
        await settings(url).connect() as queue,
        await queue.subscribe(TOPIC) as subscription,
    ):
        await publisher.publish(numbered(1), TOPIC)
        proxy.delay = 1.0
        waiting = asyncio.create_task(receive(subscription))
        await eventually(lambda: _are_handed_over(server, 1))
        proxy.delay = 0.0
        proxy.cut()
        (delivery,) = await waiting
        assert (number_of(delivery), delivery.attempt) == (1, 2)


async def test_what_has_waited_for_a_further_request_for_too_long_is_the_next_members(
    server: SqsServer, proxy: TcpProxy
) -> None:
    url = f"http://127.0.0.1:{await proxy.start(server.port)}"
    async with (
        await settings(url, timeout=3.0).connect() as slow,
        await settings(server.endpoint_url).connect() as queue,
        await slow.subscribe(TOPIC) as slow_subscription,
        await queue.subscribe(TOPIC) as subscription,
    ):
        await publish(queue, *range(MAX_ENTRIES))
        proxy.holds = b'"WaitTimeSeconds": 0'
        receiving = asyncio.create_task(slow_subscription.receive(2 * MAX_ENTRIES))
        await eventually(lambda: _are_handed_over(server, MAX_ENTRIES))
        deliveries: list[Delivery] = []
        while len(deliveries) < MAX_ENTRIES:
            batch = await receive(subscription, MAX_ENTRIES)
            for delivery in batch:
                await delivery.extend(60.0)
            deliveries += batch
        assert {delivery.attempt for delivery in deliveries} == {2}
        done, _ = await asyncio.wait({receiving}, timeout=3.0)
        assert not done
        receiving.cancel()
        for delivery in deliveries:
            await delivery.ack()


async def _are_handed_over(server: SqsServer, count: int) -> bool:
    return await count_of(server.endpoint_url, "ApproximateNumberOfMessagesNotVisible") == count


async def _are_there(server: SqsServer, count: int) -> bool:
    name = "llama_deploy--service"
    return await count_of(server.endpoint_url, "ApproximateNumberOfMessages", name) == count


class Answering(Workflow):
    @step
    async def answer(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=event.get("n"))


async def test_tasks_outlive_a_server_that_forgets_them(server: SqsServer) -> None:
    config = ControlPlaneConfig(port=0, lease_seconds=LEASE, redispatch_seconds=1.0)
    async with (
        await settings(server.endpoint_url, timeout=1.0).connect() as queue,
        await SQLiteStateStore.connect("sqlite:///:memory:") as store,
        ControlPlaneServer(queue, state_store=store, config=config) as plane,
    ):
        stack = Stack(queue, store, plane)
        service = stack.service(Answering())
        await service.register_to_control_plane()
        # Nobody works yet: the messages are at the server when it dies.
        early = [await stack.submit(n=n) for n in range(10)]
        await eventually(lambda: _are_there(server, 10))
        server.kill()
        late = [await stack.submit(n=n) for n in range(10, 20)]
        await asyncio.to_thread(server.start)
        async with stack.serving(service), asyncio.timeout(60):
            views = await asyncio.gather(*(stack.end(each, wait=50.0) for each in early + late))
        assert [result_of(view) for view in views] == list(range(20))
