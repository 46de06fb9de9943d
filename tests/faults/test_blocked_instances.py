"""A step blocks the event loop of its process: it is seen, and its task ends when it is to end."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import BlockedStep
from tests.faults.conftest import System

pytestmark = pytest.mark.faults


async def llamactl_status(system: System, *options: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llama_deploy.cli", "-s", system.url, "status", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    stdout, _ = await process.communicate()
    return stdout.decode()


async def blocked_steps(client: Client) -> list[BlockedStep]:
    return [
        blocked
        for service in await client.core.services.list()
        for instance in service.instances
        for blocked in instance.blocked
    ]


async def spinning(system: System, client: Client) -> TaskHandle:
    """Start a task that blocks its process for ever."""
    handle = await client.submit("ledger", name="spinning", spin=True)
    await system.begun(1)
    return handle


async def test_a_blocked_instance_is_seen_with_its_step_and_task(system: System) -> None:
    system.start("core.py")
    system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await spinning(system, client)

        async def is_seen() -> bool:
            return bool(await blocked_steps(client))

        await eventually(is_seen, seconds=30)
        (blocked,) = await blocked_steps(client)
        assert (blocked.task_id, blocked.step) == (handle.task_id, "work")
        assert Path(blocked.place.rpartition(":")[0]).name == "service.py"
        words = await llamactl_status(system)
        assert " s by step 'work' of task " + handle.task_id in words
        (service,) = json.loads(await llamactl_status(system, "--json"))["services"]
        assert service["blocked"][0]["task_id"] == handle.task_id
