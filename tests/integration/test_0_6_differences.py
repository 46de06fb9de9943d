"""Each error that a program of 0.6 gets because something is different names the entry in the guide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    Client,
    ControlPlaneConfig,
    ControlPlaneServer,
    LocalStack,
    SimpleMessageQueueConfig,
    WorkflowServiceConfig,
    deploy_workflow,
)
from llama_deploy.deploy import HostedWorkflow
from llama_deploy.errors import ConfigError, TaskFailedError
from llama_deploy.message_queues import LocalMessageQueue, RedisMessageQueueConfig, SolaceMessageQueueConfig
from tests.servers.redis import RedisServer

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "migrate-from-0.6.md"


def entry_in(text: str) -> str:
    """Return the entry that an error names; it must be in the guide."""
    found = re.search(r"see '([^']+)' in docs/how-to/migrate-from-0\.6\.md", text)
    assert found is not None, text
    assert f"| {found[1]} |" in GUIDE.read_text()
    return found[1]


class Old(Workflow):
    """Does what worked with 0.6."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        old: Any = ctx
        match ev.kind:
            case "get":
                await old.get("x", default=None)
            case "set":
                await old.set("x", 1)
            case "data":
                old.data["x"] = 1
            case "nested":
                other: Any = self
                other.add_workflows(other=Old())
        return StopEvent()


@pytest.mark.parametrize(
    ("kind", "entry", "advice"),
    [
        ("get", "ctx.get and ctx.set", "ctx.store.get"),
        ("set", "ctx.get and ctx.set", "ctx.store.set"),
        ("data", "ctx.get and ctx.set", "ctx.store"),
        ("nested", "add_workflows", "call the service"),
    ],
)
async def test_members_that_the_workflow_library_has_removed(
    tmp_path: Path, kind: str, entry: str, advice: str
) -> None:
    async with (
        await LocalStack.start(
            [HostedWorkflow.named("old", Old())],
            control_plane_config=ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db"),
            message_queue_config=SimpleMessageQueueConfig(port=0),
        ) as stack,
        Client(stack.control_plane_url, timeout=20) as client,
    ):
        with pytest.raises(TaskFailedError, match="has no attribute") as caught:
            await client.run("old", kind=kind)
        assert entry_in(str(caught.value)) == entry
        assert advice in str(caught.value)


@pytest.mark.parametrize("uri", ["redis://localhost:6379", "mongodb+srv://localhost"])
async def test_state_stores(uri: str) -> None:
    async with await LocalMessageQueue.start() as queue:
        with pytest.raises(ConfigError) as caught:
            await ControlPlaneServer(queue, config=ControlPlaneConfig(port=0, state_store_uri=uri)).start()
        assert entry_in(str(caught.value)) == "State stores"
        store: Any = {}
        with pytest.raises(ConfigError) as caught:
            ControlPlaneServer(queue, state_store=store)
        assert entry_in(str(caught.value)) == "State stores"


def test_solace() -> None:
    with pytest.raises(ConfigError) as caught:
        SolaceMessageQueueConfig()
    assert entry_in(str(caught.value)) == "Solace"


async def test_credentials_of_a_broker(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--requirepass", "secret") as server:
        async with await LocalStack.start(
            [],
            control_plane_config=ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db"),
            message_queue_config=RedisMessageQueueConfig(url=server.url, password=SecretStr("secret")),
        ) as stack:
            config = WorkflowServiceConfig(host="127.0.0.1", port=0, service_name="old")
            with pytest.raises(ConfigError) as caught:
                await deploy_workflow(Old(), config, stack.control_plane.config)
    assert entry_in(str(caught.value)) == "Credentials of a broker"
    assert "REDIS_PASSWORD" in GUIDE.read_text()
