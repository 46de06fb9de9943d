"""During a rolling upgrade the older side ignores what the newer one adds, whichever is upgraded first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.message_queues import (
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import TaskStatus
from llama_deploy.types.instance_protocol import MAX_REPORT_BYTES
from tests.integration.in_process import LEASE, PATIENCE, stop
from tests.integration.newer_release import NewerQueue, NewerSide


class Progress(Event):
    n: int


class Interview(Workflow):
    """Streams, asks a person, keeps state, and ends with more than a message holds."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> InputRequiredEvent:
        for n in range(3):
            ctx.write_event_to_stream(Progress(n=n))
        await ctx.store.set("length", ev.get("length"))
        return InputRequiredEvent(prefix="go on?")

    @step
    async def answer(self, ctx: Context, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response * await ctx.store.get("length"))


@dataclass
class Sides:
    """A control plane and a service with one instance, one of the two newer than the other."""

    client: Client
    proxy: NewerSide


@asynccontextmanager
async def sides(*, newer: str) -> AsyncIterator[Sides]:
    kinds = {True: NewerQueue, False: SimpleMessageQueue}
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue_server,
        await kinds[newer == "control plane"].connect(queue_server.config) as plane_queue,
        await kinds[newer == "instance"].connect(queue_server.config) as service_queue,
        await SQLiteStateStore.connect("sqlite:///:memory:") as store,
        ControlPlaneServer(
            plane_queue, state_store=store, config=ControlPlaneConfig(port=0, lease_seconds=LEASE)
        ) as server,
    ):
        proxy = NewerSide(server.config.url, requests=newer == "instance", answers=newer == "control plane")
        async with proxy.serve() as url, Client(control_plane_url=url, timeout=PATIENCE) as client:
            config = WorkflowServiceConfig(
                host="127.0.0.1", port=0, service_name="service", idle_timeout=0.05
            )
            service = WorkflowService(Interview(timeout=None), service_queue, config)
            await service.register_to_control_plane(url)
            working = await service.launch_local()
            try:
                yield Sides(client, proxy)
            finally:
                await stop(working)


@pytest.mark.parametrize("newer", ["instance", "control plane"])
async def test_tasks_go_all_the_way_while_one_side_is_newer(
    newer: str, caplog: pytest.LogCaptureFixture
) -> None:
    length = MAX_REPORT_BYTES
    async with sides(newer=newer) as both:
        handle = await both.client.submit("service", length=length)

        async def is_parked() -> bool:
            return await handle.status() is TaskStatus.WAITING

        await eventually(is_parked, seconds=PATIENCE)
        await handle.send(HumanResponseEvent(response="y"))
        assert await handle.result() == "y" * length
        events = [event async for event in handle.events()]
        assert [event.data.get("n") for event in events[:3]] == [0, 1, 2]
    assert "does not answer the heartbeats" not in caplog.text
    used = {"/services/register", "/instances/heartbeat", "/attempts/claim", "/attempts/journal", "/tasks"}
    if newer == "instance":
        used.add("/attempts/report")
    assert used <= set(both.proxy.changed)
