"""The clients of 0.5 against a real control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_deploy.compat import AsyncLlamaDeployClient, LlamaDeployClient
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.types import ServiceDefinition
from tests.integration.scripted_services import running_stack


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[ControlPlaneConfig]:
    async with running_stack(tmp_path) as stack:
        yield stack.config


async def test_the_async_client_of_0_5(config: ControlPlaneConfig) -> None:
    with pytest.warns(DeprecationWarning, match="Client"):
        old = AsyncLlamaDeployClient(config, timeout=20)
    session = await old.get_or_create_session("mine")
    assert session.session_id == "mine"
    assert await session.run("adder", a=3, b=4) == "7"
    task = await session.get_current_task()
    assert task is not None
    assert task.agent_id == "adder"
    assert [found.session_id for found in await old.list_sessions()] == ["mine"]
    assert (await old.get_service("adder")).service_name == "adder"
    await old.register_service(ServiceDefinition(service_name="later"))
    await session.run_nowait("later")
    await old.delete_session("mine")  # also with an open task
    with pytest.raises(ValueError, match=r"^Session with id mine not found"):
        await old.get_session("mine")
    await old.close()


async def test_the_sync_client_of_0_5(config: ControlPlaneConfig) -> None:
    def use() -> None:
        with pytest.warns(DeprecationWarning, match="Client"):
            old = LlamaDeployClient(config, timeout=20)
        session = old.create_session()
        assert session.run("adder", a=3, b=4) == "7"
        assert old.get_session(session.session_id).id == session.id
        with pytest.raises(ValueError, match=r"^Session with id mine not found"):
            old.get_session("mine")
        old.register_service(ServiceDefinition(service_name="mine"))
        assert "mine" in [service.service_name for service in old.list_services()]
        old.deregister_service("mine")
        old.close()

    await asyncio.to_thread(use)
