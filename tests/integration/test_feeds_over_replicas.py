"""A feed at one control plane tells what happens at the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest

from llama_deploy import Client
from llama_deploy.state_stores.base import StateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.types.feeds import FeedItem
from llama_deploy.types.instance_protocol import ClaimRequest
from tests.integration.conftest import post, submit
from tests.integration.test_many_control_planes import Cluster, Counting, running_cluster


@pytest.fixture
async def cluster(postgresql_uri: str) -> AsyncIterator[Cluster]:
    async with running_cluster(postgresql_uri) as cluster:
        yield cluster


async def until(items: AsyncIterator[FeedItem], task_id: str, status: TaskStatus) -> list[TaskStatus]:
    """Read until a task is told to have a status; return what was told of it."""
    seen = []
    async with asyncio.timeout(20):
        async for item in items:
            if item.task is not None and item.task.task_id == task_id:
                seen.append(item.task.status)
                if item.task.status is status:
                    return seen
    raise AssertionError("the feed has ended")


async def test_changes_at_another_replica_are_told_as_they_occur(cluster: Cluster) -> None:
    first, second, third = cluster.replicas
    await first.server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    async with Client(second.server.config.url) as client:
        items = client.events()
        cursor = (await anext(items)).cursor
        await eventually(first.server.plane._interest.is_shown)
        session = await post(first.http, "/sessions/create")
        await submit(first.http, task_id="t", session_id=session)
        assert await until(items, "t", TaskStatus.QUEUED) == [TaskStatus.QUEUED]
        claim = ClaimRequest(task_id="t", attempt=1, instance_id="one")
        await first.server.plane.attempts.claim([claim])
        assert await until(items, "t", TaskStatus.RUNNING) == [TaskStatus.RUNNING]
        await post(first.http, f"/sessions/{session}/delete?cancel=true")
        async with asyncio.timeout(20):
            async for item in items:
                if item.deleted is not None:
                    assert item.deleted == "t"
                    break
        await items.aclose()
    await cluster.serve(Counting(), third)
    await submit(third.http, task_id="t2", wait=10)
    async with Client(first.server.config.url) as client:
        items = client.events(after=cursor)
        assert (await until(items, "t2", TaskStatus.SUCCEEDED))[-1] is TaskStatus.SUCCEEDED
        await items.aclose()


async def test_what_was_not_named_is_told_within_seconds(cluster: Cluster) -> None:
    first, second, _ = cluster.replicas
    await first.server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    async with Client(second.server.config.url) as client:
        items = client.events()
        await anext(items)
        # The first one has not heard that a feed is read.
        first.server.plane._interest.until = 0.0
        await submit(first.http, task_id="t")
        assert await until(items, "t", TaskStatus.QUEUED) == [TaskStatus.QUEUED]
        await items.aclose()


async def test_events_of_tasks_at_another_replica_are_told(cluster: Cluster) -> None:
    first, second, _ = cluster.replicas
    await cluster.serve(Counting(), first)
    async with Client(second.server.config.url) as client:
        items = client.events(stream=True)
        await anext(items)
        await submit(first.http, task_id="t", arguments={"events": 250}, wait=10)
        found: list[int] = []
        async with asyncio.timeout(20):
            async for item in items:
                if item.event is not None:
                    found.append(item.event.index)
                    if item.event.terminal:
                        break
        assert found == list(range(251))
        await items.aclose()


async def test_nobody_names_changes_while_no_feed_is_read(cluster: Cluster) -> None:
    first, second, _ = cluster.replicas
    interest = first.server.plane._interest
    assert not interest.is_shown()
    async with Client(second.server.config.url) as client:
        items = client.events()
        await anext(items)
        await eventually(interest.is_shown)
        await items.aclose()
    feed = second.server.plane.feeds.feed
    await eventually(lambda: not feed.is_read)


async def test_a_stream_is_packed_once_by_two_control_planes(cluster: Cluster) -> None:
    first, second, _ = cluster.replicas
    await cluster.serve(Counting(), first)
    await submit(first.http, task_id="t", arguments={"events": 200}, wait=10)
    await asyncio.gather(*(replica.server.plane._packer.pack("t") for replica in (first, second) * 3))
    packs = await first.store.read(lambda tx: tx.events.last_pack("t"))
    assert packs is not None
    assert packs.length == 200
    events = await second.store.read(lambda tx: tx.events.load("t"))
    assert [event.position for event in events] == list(range(201))


async def test_nothing_is_packed_while_an_older_release_works_on_the_store(postgresql_uri: str) -> None:
    asyncpg = pytest.importorskip("asyncpg")
    async with running_cluster(postgresql_uri) as cluster:
        (first, *_) = cluster.replicas
        await eventually(first.store.has_company)
        assert not await first.store.has_older_company()
        older = await asyncpg.connect(postgresql_uri)
        try:
            await older.execute(f"SELECT pg_advisory_lock_shared({first.store._place.listening_lock})")
            assert await first.store.has_older_company()
        finally:
            await older.close()
        await eventually(partial(_is_alone, first.store))


async def _is_alone(store: StateStore) -> bool:
    return not await store.has_older_company()
