"""With authentication, everything of ours that calls a server sends its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    WorkflowServiceConfig,
    deploy_workflow,
)
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.errors import AuthenticationError, ConfigError, LlamaDeployError, PermissionDeniedError
from llama_deploy.message_queues import SimpleMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.workflow import ServiceClient

ADMIN = "admin-key-of-thirty-two-characters-or-more"
QUEUE_KEY = "queue-key-of-thirty-two-characters-or-more"


class Inner(Workflow):
    @step
    async def answer(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("number", 0) + 1)


class Outer(Workflow):
    @step
    async def call(self, ev: StartEvent, services: ServiceClient) -> StopEvent:
        return StopEvent(result=await services.run("inner", number=ev.get("number", 0)))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        authentication="keys",
        admin_key=SecretStr(ADMIN),
    )
    hosted = [HostedWorkflow.named("inner", Inner), HostedWorkflow.named("outer", Outer)]
    queue = SimpleMessageQueueConfig(port=0)
    async with await LocalStack.start(
        hosted, control_plane_config=config, message_queue_config=queue
    ) as stack:
        yield stack


async def created_key(stack: LocalStack, *scopes: str) -> str:
    async with Client(stack.control_plane_url, api_key=ADMIN) as admin:
        return (await admin.core.keys.create(scopes, expires_in=None)).key


async def test_steps_call_other_services_of_the_same_process(stack: LocalStack) -> None:
    async with Client(stack.control_plane_url, api_key=ADMIN) as client:
        assert await client.run("outer", number=1) == 2
    key = await created_key(stack, "tasks:write", "tasks:read")
    sync = Client(stack.control_plane_url, api_key=key).sync
    assert await asyncio.to_thread(sync.run, "outer", number=2) == 3
    await asyncio.to_thread(sync.close)


async def test_a_service_elsewhere_uses_one_key_for_control_plane_queue_and_steps(
    stack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "LLAMA_DEPLOY_API_KEY", await created_key(stack, "services:host", "tasks:write", "tasks:read")
    )
    at = ControlPlaneConfig(port=stack.control_plane.config.port)
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="elsewhere")
    serving = asyncio.create_task(deploy_workflow(Outer, config, at))
    async with Client(stack.control_plane_url) as client:

        async def is_there() -> bool:
            return "elsewhere" in {each.service_name for each in await client.core.services.list()}

        await eventually(is_there)
        assert await client.run("elsewhere", number=5) == 6
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize(
    ("scopes", "error"), [([], AuthenticationError), (["tasks:write"], PermissionDeniedError)]
)
async def test_a_service_without_the_scope_is_not_let_in(
    stack: LocalStack, scopes: list[str], error: type[LlamaDeployError], monkeypatch: pytest.MonkeyPatch
) -> None:
    if scopes:
        monkeypatch.setenv("LLAMA_DEPLOY_API_KEY", await created_key(stack, *scopes))
    config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="elsewhere")
    at = ControlPlaneConfig(port=stack.control_plane.config.port)
    with pytest.raises(error):
        await deploy_workflow(Inner, config, at)


async def test_a_simple_queue_alone_has_a_shared_key() -> None:
    config = SimpleMessageQueueConfig(port=0, api_key=SecretStr(QUEUE_KEY))
    async with SimpleMessageQueueServer(config) as server:
        assert server.config.api_key is not None
        assert QUEUE_KEY not in repr(server.config)
        assert QUEUE_KEY not in str(server.config.public_settings())
        message = QueueMessage(type="t", data={"a": 1})
        async with await server.config.connect() as queue:
            await queue.publish(message, "topic")
            async with await queue.subscribe("topic") as subscription:
                (delivery,) = await subscription.receive(1)
                assert delivery.message.data == {"a": 1}
        wrong = server.config.model_copy(update={"api_key": SecretStr("w" * 32)})
        without = server.config.model_copy(update={"api_key": None})
        for settings in (wrong, without):
            with pytest.raises(AuthenticationError):
                await SimpleMessageQueue.connect(settings)


async def test_the_key_comes_from_a_file(stack: LocalStack, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{ADMIN}\n")
    async with Client(stack.control_plane_url, api_key_file=file) as client:
        assert await client.run("inner", number=1) == 2
        assert await asyncio.to_thread(client.sync.run, "inner", number=1) == 2
    with pytest.raises(ConfigError, match="api_key_file"):
        Client(stack.control_plane_url, api_key_file=tmp_path / "missing")
