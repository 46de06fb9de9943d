"""Runs that not every version can continue, while instances join, leave, die and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.http.control_plane_server import ControlPlaneServer
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.services import AnyWorkflow
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.state_stores.sqlite import SQLiteStateStore
from llama_deploy.types import ServiceDefinition, TaskStatus, TaskSubmission
from llama_deploy.types.instance_protocol import Heartbeat, ProcessDeath
from tests.integration.in_process import Stack, running_stack, until
from tests.integration.test_versions import Answer, Approve, Renamed

TOPIC = "llama_deploy.service"


class Hands(Stack):
    """A stack whose instances are played by hand."""

    async def parked(self) -> str:
        """Return a task whose run `Approve` has begun, and that waits for its answer."""
        async with self.serving(self.service(Approve(timeout=None), idle_timeout=0.01)):
            task_id = await self.submit(n=1)

            async def is_parked() -> bool:
                return (await self.record(task_id)).status is TaskStatus.WAITING

            await until(is_parked)
        return task_id

    async def register(self, workflow: AnyWorkflow, instance_id: str) -> None:
        definition = self.service(workflow).service_definition
        changes = {"instance_id": instance_id, "process_id": instance_id, "slots": 1}
        await self.plane.services.register(definition.model_copy(update=changes))

    async def beat(self, instance_id: str, *, running: int = 0) -> None:
        await self.plane.services.heartbeat(Heartbeat(instance_id=instance_id, slots=1, running=running))

    async def record(self, task_id: str) -> TaskRecord:
        return (await self.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]

    def sent(self) -> dict[str, int]:
        """Return how many messages wait, by topic."""
        assert isinstance(self.queue, LocalMessageQueue)
        depths = self.queue._broker.depths()
        return {topic: depth.messages for topic, depth in depths.items() if depth.messages}


@asynccontextmanager
async def running_by_hand(*, lease_seconds: float) -> AsyncIterator[Hands]:
    async with running_stack(lease_seconds=lease_seconds, redispatch_seconds=600) as stack:
        yield Hands(stack.queue, stack.store, stack.server)


@pytest.fixture
async def stack() -> AsyncIterator[Hands]:
    async with running_by_hand(lease_seconds=60) as hands:
        yield hands


async def sweep(stack: Hands) -> None:
    """Let the control plane do all that is due."""
    await stack.plane._sweeps.sweep()


async def test_instances_that_join_and_leave_send_nothing_that_is_sent_already(stack: Hands) -> None:
    task_id = await stack.parked()
    await stack.register(Approve, "old")
    await stack.register(Renamed, "new")
    await stack.send(task_id, Answer(text="yes"))
    await until(lambda: stack.sent() == {f"{TOPIC}.old": 1})
    before = await stack.record(task_id)
    for number in range(4):
        await stack.register(Renamed, f"new {number}")
        await stack.plane.services.deregister("service", instance_id=f"new {number}")
    await sweep(stack)
    assert stack.sent() == {f"{TOPIC}.old": 1}
    assert await stack.record(task_id) == before


async def test_a_death_sends_a_run_on_though_all_other_instances_were_full(stack: Hands) -> None:
    task_id = await stack.parked()
    for workflow, name in ((Approve, "first"), (Approve, "second"), (Renamed, "new")):
        await stack.register(workflow, name)
        await stack.beat(name, running=1)
    await stack.send(task_id, Answer(text="yes"))
    await until(lambda: bool(stack.sent()))
    [topic] = stack.sent()
    gone = topic.removeprefix(f"{TOPIC}.")
    other = {"first": "second", "second": "first"}[gone]
    await stack.plane.deaths.report(ProcessDeath(instances=[gone], reason="was killed"))
    await until(lambda: f"{TOPIC}.{other}" in stack.sent())


async def test_a_run_continues_when_its_instance_is_back_from_a_pause() -> None:
    async with running_by_hand(lease_seconds=1.0) as stack:
        task_id = await stack.parked()
        await stack.register(Approve, "paused")
        await stack.register(Renamed, "new")

        async def is_stranded() -> bool:
            await stack.beat("new")
            return (await stack.plane.tasks.get(task_id)).stranded is not None

        await until(is_stranded)
        await stack.send(task_id, Answer(text="yes"))
        await stack.beat("new")
        await stack.beat("paused")
        await until(lambda: f"{TOPIC}.paused" in stack.sent())


async def test_after_a_restart_what_the_queue_has_lost_is_published_though_instances_were_full(
    tmp_path: Path,
) -> None:
    config = ControlPlaneConfig(port=0, lease_seconds=60)
    for life in (1, 2):
        async with (
            await LocalMessageQueue.start() as queue,
            await SQLiteStateStore.connect(f"sqlite:///{tmp_path / 'state.db'}") as store,
            ControlPlaneServer(queue, state_store=store, config=config) as server,
        ):
            stack = Hands(queue, store, server)
            if life == 1:
                await server.plane.services.register(
                    ServiceDefinition(service_name="service", instance_id="one", slots=1)
                )
                await stack.beat("one", running=1)
                await server.plane.tasks.submit(TaskSubmission(service_name="service", task_id="t"))
            await until(lambda stack=stack: stack.sent() == {TOPIC: 1})


async def test_a_free_slot_ends_the_pause_of_what_was_held_behind_full_instances() -> None:
    async with running_stack(lease_seconds=2.0, redispatch_seconds=1.0) as running:
        stack = Hands(running.queue, running.store, running.server)
        await stack.register(Approve, "one")
        task_id = await stack.submit(n=1)
        async with await stack.queue.subscribe(TOPIC) as work:
            [lost] = await work.receive(1)
            await lost.ack()
            long_ago = datetime.now(UTC) - timedelta(seconds=50)
            waited = (await stack.record(task_id))._replace(
                status_changed_at=long_ago, redispatch_at=long_ago
            )
            await stack.beat("one", running=1)
            await stack.store.transact(lambda tx: tx.tasks.update([waited]))

            async def is_held() -> bool:
                await stack.beat("one", running=1)
                due = (await stack.record(task_id)).redispatch_at
                return due is not None and due - datetime.now(UTC) > timedelta(seconds=30)

            await until(is_held)

            async def beat_free() -> None:
                while True:
                    await stack.beat("one")
                    await asyncio.sleep(0.2)

            beating = asyncio.create_task(beat_free())
            [again] = await asyncio.wait_for(work.receive(1), 15)
            assert again.message.data["task_id"] == task_id
            beating.cancel()
            await asyncio.wait([beating])
