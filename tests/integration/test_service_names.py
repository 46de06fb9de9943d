"""Services whose names have spaces, slashes, colons or letters of any language."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from workflows import Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig, LocalStack, SimpleMessageQueueConfig, deploy_workflow
from llama_deploy.client import Service
from llama_deploy.client.paths import service_path
from llama_deploy.errors import ServiceNotFoundError
from llama_deploy.services import WorkflowServiceConfig
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition

NAMES = [
    "my service",
    "team/adder",
    "/",
    "a:b",
    "你好,世界",
    "a%2Fb",
    "a b?c#d&e=f",
    "_private",
    "é" * 200,
    "x" * 200,
]


class Ask(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix=ev.get("text", "?"))

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    async with await LocalStack.start(
        [],
        control_plane_config=ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db"),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    ) as stack:
        yield stack


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_with_any_name_works(stack: LocalStack, name: str) -> None:
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=name)
    running = asyncio.create_task(deploy_workflow(Ask, config, stack.control_plane.config))
    async with Client(stack.control_plane_url, timeout=20) as client:

        async def there() -> bool:
            return any(service.instances for service in await client.core.services.list())

        await eventually(there)
        session = await client.core.sessions.create()
        task_id = await session.run_nowait(name)
        await session.send_event(name, task_id, HumanResponseEvent(response="yes"))
        assert await client.task(task_id).result() == "yes"
        assert [task.agent_id for task in await session.get_tasks()] == [name]
        view = await client.task(task_id).info()
        assert view.service_name == name
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("name", NAMES)
async def test_a_service_with_any_name_has_its_route(stack: LocalStack, name: str) -> None:
    async with Client(stack.control_plane_url, timeout=20) as client:
        await client.core.services.register(ServiceDefinition(service_name=name, description="d"))
        found = await client.core.api.get(service_path(name), Service.model_validate)
        assert (found.service_name, found.description) == (name, "d")
        await client.core.services.deregister(name)
        with pytest.raises(ServiceNotFoundError):
            await client.core.api.get(service_path(name), Service.model_validate)
