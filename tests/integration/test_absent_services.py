"""A service that nobody serves costs one message for each of its tasks, and stops no other service."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.storage.outgoing import Outgoing
from llama_deploy.errors import OverloadedError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.message_queues.base import Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.base import StateStore
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition, TaskSubmission
from llama_deploy.types.instance_protocol import TaskDispatch
from llama_deploy.web.http_connection import HttpConnection
from tests.integration.conftest import Instance, beat, submit
from tests.integration.in_process import running_stack

TASKS = 20


@pytest.fixture
def redispatch_seconds() -> float:
    """So short that a task would be published again many times while a test waits."""
    return 0.2


async def submit_some(http: HttpConnection, count: int = TASKS) -> None:
    await asyncio.gather(*(submit(http, task_id=f"t{number}") for number in range(count)))


async def held_until(store: StateStore) -> list[timedelta]:
    """Return for how long each queued task is held."""
    now = datetime.now(UTC)
    queued = await store.read(lambda tx: tx.tasks.queued())
    return [(task.redispatch_at or now) - now for task in queued]


async def are_held(store: StateStore, *, seconds: float = 5.0) -> bool:
    return all(left > timedelta(seconds=seconds) for left in await held_until(store))


def ready(queue: LocalMessageQueue) -> int:
    """Return how many messages wait for instances of the service."""
    return queue._broker.depths()["llama_deploy.echo"].messages


async def drain(work: Subscription, count: int) -> None:
    """Lose messages."""
    async with asyncio.timeout(20):
        while count:
            deliveries = await work.receive(count)
            await asyncio.gather(*(delivery.ack() for delivery in deliveries))
            count -= len(deliveries)


async def beating(instance: Instance) -> None:
    """Keep an instance alive."""
    while True:
        await beat(instance)
        await asyncio.sleep(0.5)


async def test_nothing_is_published_again_while_a_service_has_no_instance(
    http: HttpConnection, server: ControlPlaneServer, queue: LocalMessageQueue, store: StateStore
) -> None:
    await server.plane.services.register(ServiceDefinition(service_name="echo"))
    await submit_some(http)
    await eventually(lambda: are_held(store), seconds=20)
    assert ready(queue) == TASKS


@pytest.mark.parametrize(("lease_seconds", "redispatch_seconds"), [(3.0, 1.0)])
async def test_what_waits_is_published_soon_after_an_instance_registers(
    http: HttpConnection, server: ControlPlaneServer, queue: LocalMessageQueue, store: StateStore
) -> None:
    await server.plane.services.register(ServiceDefinition(service_name="echo"))
    await submit_some(http)
    async with await queue.subscribe("llama_deploy.echo") as work:
        await drain(work, TASKS)
        await eventually(lambda: are_held(store, seconds=40), seconds=20)
        await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
        living = asyncio.create_task(beating(Instance(server, queue, work, "one")))
        await drain(work, TASKS)
        living.cancel()
        await asyncio.wait([living])


@pytest.mark.parametrize("lease_seconds", [6.0])
async def test_nothing_is_published_again_while_all_instances_are_full(
    http: HttpConnection, instance: Instance, queue: LocalMessageQueue, store: StateStore
) -> None:
    await beat(instance, slots=1, running=1)
    await submit_some(http)
    # They are held longer the longer they wait; by then they would have been published several times.
    await eventually(lambda: are_held(store, seconds=0.6), seconds=20)
    assert ready(queue) == TASKS
    await drain(instance.work, TASKS)
    await beat(instance, slots=1, running=0)
    dispatch: TaskDispatch = await instance.next_dispatch()
    assert dispatch.attempt == 1


# -- limits


@pytest.fixture
def config(config: ControlPlaneConfig) -> ControlPlaneConfig:
    return config.model_copy(update={"max_queued_tasks": TASKS})


async def test_a_service_with_too_many_waiting_tasks_refuses_more_and_others_do_not(
    http: HttpConnection, server: ControlPlaneServer
) -> None:
    for name in ("echo", "other"):
        await server.plane.services.register(ServiceDefinition(service_name=name))
    await submit_some(http)
    with pytest.raises(OverloadedError, match=f"service 'echo' has {TASKS} waiting tasks") as refused:
        await submit(http, task_id="one too many")
    assert refused.value.retry_after >= 1
    await submit(http, task_id="of another", service_name="other")
    known = await submit(http, task_id="t0")
    assert known["status"] == "queued", "a task that was accepted before is found"


async def test_there_is_room_again_when_tasks_have_started(http: HttpConnection, instance: Instance) -> None:
    await submit_some(http)
    with pytest.raises(OverloadedError):
        await submit(http, task_id="one too many")
    await instance.run_one()

    async def is_accepted() -> bool:
        try:
            await instance.server.plane.tasks.submit(
                TaskSubmission(service_name="echo", task_id="fits", arguments={})
            )
        except OverloadedError:
            return False
        return True

    await eventually(is_accepted, seconds=20)


class Stuck(LocalMessageQueue):
    """Accepts nothing but what goes to a work topic."""

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        if topic.count(".") > 1:
            await asyncio.Event().wait()
        await super()._publish(message, topic)


@pytest.mark.parametrize("part", ["_suspects", "one"])
async def test_all_messages_to_a_service_count_that_wait_for_the_queue(part: str) -> None:
    async with running_stack(Stuck.start, lease_seconds=30, max_backlog=TASKS) as stack:
        for name in ("echo", "other"):
            await stack.plane.services.register(ServiceDefinition(service_name=name))
        messages = [QueueMessage(action=ActionTypes.NEW_TASK, type="echo") for _ in range(256 + TASKS)]
        stack.plane._relay.send([Outgoing.of(f"llama_deploy.echo.{part}", each) for each in messages])

        async def is_refused() -> bool:
            try:
                await stack.submit("echo")
            except OverloadedError as exc:
                return f"{TASKS} messages to service 'echo' wait" in str(exc)
            return False

        await eventually(is_refused, seconds=20)
        await stack.submit("other")
