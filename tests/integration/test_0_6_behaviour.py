"""What programs of 0.6 do with the parts: start and cancel them, delete what is not there, read messages."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    CallableMessageConsumer,
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    QueueMessage,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    WorkflowService,
    WorkflowServiceConfig,
    deploy_core,
    deploy_workflow,
)
from llama_deploy.deploy.readiness import until_available
from llama_deploy.errors import ConfigError, SessionNotFoundError, TaskFailedError
from llama_deploy.message_queues import AbstractMessageQueue, KafkaMessageQueue, RabbitMQMessageQueue
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.types import ServiceDefinition, SessionPolicy
from tests.integration.queue_0_6 import OlderQueue, OwnQueue, new_queue, older_queue


class Greet(Workflow):
    """Greets, or fails without a name."""

    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=f"Hello, {ev.name}!")


@pytest.fixture
def configs(tmp_path: Path) -> tuple[ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig]:
    return (
        ControlPlaneConfig(port=free_port(), state_store_uri=f"sqlite:///{tmp_path}/state.db"),
        SimpleMessageQueueConfig(port=free_port()),
        WorkflowServiceConfig(host="127.0.0.1", port=free_port(), service_name="greet"),
    )


Configs = tuple[ControlPlaneConfig, SimpleMessageQueueConfig, WorkflowServiceConfig]


async def registered(client: Client) -> None:
    async def there() -> bool:
        try:
            return any(service.instances for service in await client.core.services.list())
        except Exception:  # noqa: BLE001 - not started
            return False

    await eventually(there)


async def test_what_is_launched_ends_quietly_when_its_task_is_cancelled(
    configs: Configs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    control_plane, queue, service = configs
    core = asyncio.create_task(deploy_core(control_plane, queue))
    worker = asyncio.create_task(deploy_workflow(Greet(), service, control_plane))
    async with Client(control_plane.url, timeout=20) as client:
        await registered(client)
        session = await client.core.sessions.create()
        assert await session.run("greet", name="Ada") == "Hello, Ada!"
    worker.cancel()
    await worker
    core.cancel()
    await core
    lines = [record.getMessage() for record in caplog.records]
    assert f"Launching message queue server at {queue.base_url}/" in lines
    assert f"Launching control plane server at 127.0.0.1:{control_plane.port}" in lines
    assert f"Launching greet server at 127.0.0.1:{service.port}" in lines
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_parts_end_quietly_too(configs: Configs) -> None:
    control_plane, queue_config, service_config = configs
    queue_server = SimpleMessageQueueServer(queue_config)
    serving = asyncio.create_task(queue_server.launch_server())

    async def connect() -> AbstractMessageQueue:
        return await queue_config.connect()

    async with await until_available(connect, action="connecting") as queue:
        plane = ControlPlaneServer(queue, config=control_plane)
        launched = asyncio.create_task(plane.launch_server())
        consuming = asyncio.create_task((await plane.register_to_message_queue())())
        service = WorkflowService(Greet(), queue, service_config)
        local = await service.launch_local()
        other = WorkflowService(
            Greet(), queue, service_config.model_copy(update={"port": free_port(), "service_name": "other"})
        )
        server = asyncio.create_task(other.launch_server())
        async with Client(control_plane.url, timeout=20) as client:

            async def answers() -> bool:
                try:
                    await client.core.services.list()
                except Exception:  # noqa: BLE001 - not started
                    return False
                return True

            await eventually(answers)
            await service.register_to_control_plane(control_plane.url)
            await other.register_to_control_plane(control_plane.url)
            await registered(client)
        for task in (local, server, consuming, launched):
            task.cancel()
            await task
    serving.cancel()
    await serving


async def test_a_cancellation_that_the_caller_has_to_notice_is_raised(configs: Configs) -> None:
    control_plane = configs[0].model_copy(update={"port": 0})
    queue = configs[1].model_copy(update={"port": 0})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await deploy_core(control_plane, queue)


@pytest.fixture
async def queue_server() -> AsyncIterator[SimpleMessageQueueServer]:
    async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as server:
        yield server


async def test_a_consumer_gets_the_message_that_was_sent(queue_server: SimpleMessageQueueServer) -> None:
    received: list[QueueMessage] = []
    queue = SimpleMessageQueue(queue_server.config)
    consumer = CallableMessageConsumer(message_type="test_message", handler=received.append)
    start_consuming = await queue.register_consumer(consumer, topic="test")
    consuming = asyncio.create_task(start_consuming())
    message = QueueMessage(type="test_message", data={"message": "this is a test"})
    assert message.stats.publish_time is None
    await queue.publish(message, topic="test")
    await eventually(lambda: bool(received))
    assert message.stats.publish_time is not None
    assert message in received
    assert message.stats.timestamp_str("%Y").startswith("20")
    consuming.cancel()
    await consuming
    await queue.cleanup()


def test_a_queue_can_be_made_without_a_connection() -> None:
    assert KafkaMessageQueue().as_config().address == "kafka://localhost:9092"
    assert KafkaMessageQueue.from_url_params("broker", 1234).as_config().address == "kafka://broker:1234"
    rabbitmq = RabbitMQMessageQueue.from_url_params("user", "secret", "broker", port=1234, vhost="v")
    assert "broker:1234" in rabbitmq.as_config().address
    assert "secret" not in rabbitmq.as_config().address


@pytest.mark.parametrize("new_queue", [new_queue, older_queue])
async def test_a_queue_written_for_0_6_works(
    configs: Configs, new_queue: Callable[[], AbstractMessageQueue]
) -> None:
    control_plane, _, service_config = configs
    OwnQueue.topics = {}
    queue = new_queue()
    async with ControlPlaneServer(queue, config=control_plane) as server:
        assert (await server.get_message_queue_config())["type"] == "OwnConfig"
        service = WorkflowService(Greet(), new_queue(), service_config)
        running = await service.launch_local()
        await service.register_to_control_plane(control_plane.url)
        async with Client(control_plane.url, timeout=20) as client:
            session = await client.core.sessions.create(policy=SessionPolicy.PARALLEL)
            found = await asyncio.gather(*(session.run("greet", name=str(n)) for n in range(20)))
            assert found == [f"Hello, {n}!" for n in range(20)]
            with pytest.raises(TaskFailedError):
                await session.run("greet")
        running.cancel()
        await running
    await queue.close()
    assert isinstance(queue, OwnQueue | OlderQueue)
    assert queue.cleaned


async def test_a_queue_written_for_0_6_may_fail_for_a_while(configs: Configs) -> None:
    control_plane, _, service_config = configs
    OwnQueue.topics = {}
    async with ControlPlaneServer(new_queue(), config=control_plane):
        service = WorkflowService(Greet(), new_queue(), service_config)
        running = await service.launch_local()
        await service.register_to_control_plane(control_plane.url)
        async with Client(control_plane.url, timeout=20) as client:
            assert await client.run("greet", name="Ada") == "Hello, Ada!"
            OwnQueue.failures = 5
            assert await client.run("greet", name="Bob") == "Hello, Bob!"
        running.cancel()
        await running


async def test_messages_of_a_queue_written_for_0_6_reach_consumers() -> None:
    OwnQueue.topics = {}
    queue, received = new_queue(), list[QueueMessage]()
    called: list[QueueMessage] = []

    def note(message: QueueMessage, **_: object) -> None:
        called.append(message)

    consumer = CallableMessageConsumer(message_type="t", handler=received.append)
    consuming = asyncio.create_task((await queue.register_consumer(consumer, "topic"))())
    message = QueueMessage(type="t")
    await queue.publish(message, "topic", callback=note)
    await eventually(lambda: received == [message])
    assert called == [message]
    consuming.cancel()
    await asyncio.wait([consuming])


async def test_a_subscription_of_a_queue_written_for_0_6_gives_back_what_is_not_settled() -> None:
    OwnQueue.topics = {}
    queue = new_queue()
    async with await queue.subscribe("topic") as subscription:
        await queue.publish(QueueMessage(id_="m"), "topic")
        (first,) = await subscription.receive(10)
        await first.nack()
        (again,) = await subscription.receive(10)
        assert (again.message.id_, again.attempt) == ("m", 2)
        await again.ack()
    with pytest.raises(ConfigError, match="group"):
        await queue.subscribe("topic", group="other")


async def test_what_is_not_there_can_be_deleted_and_read(configs: Configs) -> None:
    control_plane, queue, _ = configs
    core = asyncio.create_task(deploy_core(control_plane, queue))
    async with Client(control_plane.url, timeout=20) as client:

        async def answers() -> bool:
            try:
                await client.core.services.list()
            except Exception:  # noqa: BLE001 - not started
                return False
            return True

        await eventually(answers)
        await client.core.sessions.delete("nobody")
        await client.core.services.deregister("nobody")
        session = await client.core.sessions.create()
        assert await session.get_task_result("nothing") is None
        await client.core.sessions.delete(session.id)
        await client.core.sessions.delete(session.id)
        with pytest.raises(SessionNotFoundError):
            await client.core.sessions.get(session.id)
    core.cancel()
    await core


async def test_the_items_of_services_follow_the_calls(configs: Configs) -> None:
    control_plane, queue, service_config = configs
    core = asyncio.create_task(deploy_core(control_plane, queue))
    worker = asyncio.create_task(deploy_workflow(Greet(), service_config, control_plane))
    async with Client(control_plane.url, timeout=20) as client:
        await registered(client)
        services = client.core.services
        assert len(await services.list()) == 1
        await services.deregister("greet")
        assert len(services.items) == 0
        new = await services.register(ServiceDefinition(service_name="another", description="none"))
        assert new.id == "another"
        assert len(services.items) == 1
    for task in (worker, core):
        task.cancel()
        await task


async def test_a_client_without_a_time_limit_waits(configs: Configs) -> None:
    control_plane, queue, service_config = configs
    core = asyncio.create_task(deploy_core(control_plane, queue))
    worker = asyncio.create_task(deploy_workflow(Greet(), service_config, control_plane))
    async with Client(control_plane_url=control_plane.url, timeout=None) as client:
        assert client.timeout == math.inf
        await registered(client)
        session = await client.core.sessions.create()
        assert await session.run("greet", name="Ada") == "Hello, Ada!"
        task_id = await session.run_nowait("greet", name="Ada")
        assert [event async for event in session.get_task_result_stream(task_id)]
        assert await asyncio.to_thread(run_without_await, client, session.id) == "Hello, Bob!"
        failed = await session.run_nowait("greet")
        with pytest.raises(TaskFailedError):
            await client.task(failed).result()
        result = await session.get_task_result(failed)
        assert result is not None
        assert "name" in result.result
    for task in (worker, core):
        task.cancel()
        await task


def run_without_await(client: Client, session_id: str) -> str:
    return client.sync.core.sessions.get(session_id).run("greet", name="Bob")


async def test_the_settings_of_a_service_of_0_5(queue_server: SimpleMessageQueueServer) -> None:
    queue = SimpleMessageQueue(queue_server.config)
    service = WorkflowService(
        workflow=Greet(),
        message_queue=queue,
        service_name="greet",
        description="d",
        host="127.0.0.1",
        port=8002,
        running=True,
        max_concurrent_tasks=2,
    )
    assert (service.service_name, service.config.port) == ("greet", 8002)
    assert service.config.max_concurrent_tasks == 2
    with pytest.raises(TypeError, match="nonsense"):
        WorkflowService(Greet(), queue, service_name="greet", nonsense=1)
    await queue.close()
