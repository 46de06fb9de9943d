"""Two control planes on one PostgreSQL database change the same tasks at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.test_bulk_changes import all_batches, bulk, retries_of, store_ended, total

pytestmark = pytest.mark.usefixtures("planes")


@pytest.fixture
async def planes(postgresql_uri: str) -> AsyncIterator[list[HttpConnection]]:
    """Connections to two control planes of one system."""
    async with AsyncExitStack() as opened:
        queue = await opened.enter_async_context(await LocalMessageQueue.start())
        connections = []
        for _ in range(2):
            store = await opened.enter_async_context(await open_state_store(postgresql_uri))
            config = ControlPlaneConfig(port=0, state_store_uri=postgresql_uri, lease_seconds=60.0)
            server = ControlPlaneServer(queue, state_store=store, config=config)
            await opened.enter_async_context(server)
            await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
            connections.append(HttpConnection(server.config.url))
            opened.push_async_callback(connections[-1].close)
        yield connections


@pytest.fixture
async def store(postgresql_uri: str, planes: list[HttpConnection]) -> AsyncIterator[StateStore]:
    async with await open_state_store(postgresql_uri) as store:
        yield store


async def test_two_changes_at_once_retry_each_task_once(
    planes: list[HttpConnection], store: StateStore
) -> None:
    ids = await store_ended(store, 60)
    options = {"filter": {"service": "echo"}, "limit": 7}
    both = await asyncio.gather(*(all_batches(plane, "retry", **options) for plane in planes))
    assert sum(map(total, both)) == len(await retries_of(store, ids)) == 60


async def test_the_same_change_at_once_is_one_change(planes: list[HttpConnection], store: StateStore) -> None:
    ids = await store_ended(store, 40)
    options = {"filter": {"service": "echo"}, "bulk_id": "tonight"}
    both = await asyncio.gather(*(bulk(plane, "retry", **options) for plane in planes))
    assert both[0]["items"] == both[1]["items"]
    assert both[0]["changed"] == len(await retries_of(store, ids)) == 40


async def test_two_changes_at_once_cancel_each_task_once(
    planes: list[HttpConnection], store: StateStore
) -> None:
    ids = await store_ended(store, 30)
    await all_batches(planes[0], "retry", filter={"service": "echo"})
    options = {"filter": {"service": "echo"}, "limit": 4}
    both = await asyncio.gather(*(all_batches(plane, "cancel", **options) for plane in planes))
    assert sum(map(total, both)) == 30
    tasks = await store.read(
        lambda tx: tx.tasks.load([each for found in tx.tasks.retries_of(ids).values() for each in found])
    )
    assert {task.status for task in tasks.values()} == {TaskStatus.CANCELLED}
