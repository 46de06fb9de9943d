"""A step blocks the event loop of its process: it is seen, and its task ends when it is to end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.errors import TaskCancelledError, TaskFailedError
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import BlockedStep, TaskStatus
from tests.faults.conftest import System, errors_in
from tests.pulse import Pulse

pytestmark = pytest.mark.faults

LIMIT_SECONDS = 2 + 6
"""A time limit, or the grace after a cancellation; then the watch notices, and a heartbeat tells it."""


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

        await eventually(is_seen, seconds=90)
        (blocked,) = await blocked_steps(client)
        assert (blocked.task_id, blocked.step) == (handle.task_id, "work")
        assert Path(blocked.place.rpartition(":")[0]).name == "service.py"
        words = await llamactl_status(system)
        assert " s by step 'work' of task " + handle.task_id in words
        (service,) = json.loads(await llamactl_status(system, "--json"))["services"]
        assert service["blocked"][0]["task_id"] == handle.task_id


async def test_the_time_limit_ends_a_task_that_blocks_its_instance(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    service = system.service(RUN_TIMEOUT="2")
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await spinning(system, client)
        begun = time.monotonic()
        with pytest.raises(TaskFailedError, match="timed out after 2\\.0 s: a step") as caught:
            await handle.result(timeout=90)
        assert pulse.idle_seconds(begun) < LIMIT_SECONDS
        assert caught.value.status == TaskStatus.TIMED_OUT
        # It still spins: its own end would have freed it.
        assert await blocked_steps(client)
        assert "is free again" not in service.text
        (*_, last) = [event async for event in handle.events()]
        assert last.terminal


async def test_cancelling_ends_a_task_that_blocks_its_instance(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    service = system.service()
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await spinning(system, client)
        await handle.cancel()
        begun = time.monotonic()
        with pytest.raises(TaskCancelledError):
            await handle.result(timeout=90)
        assert pulse.idle_seconds(begun) < LIMIT_SECONDS
        assert await blocked_steps(client)
        assert "is free again" not in service.text


async def test_what_a_blocked_instance_reports_late_changes_nothing(system: System) -> None:
    core = system.start("core.py")
    service = system.service(RUN_TIMEOUT="2")
    async with system.client() as client:
        await system.instances(client, 1)
        handle = await client.submit("ledger", name="slow", block=True, seconds=8)
        with pytest.raises(TaskFailedError, match="blocks its instance"):
            await handle.result(timeout=90)
        service.wait_for_output("is free again")
        assert await client.run("ledger", name="after") == "after 1"
        assert (await handle.info()).status is TaskStatus.TIMED_OUT
    assert system.ledger("begin")["slow"] == 1
    assert not errors_in(core.text)
