"""Children that steps have forked keep nothing of their process: it can be killed and started again."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from llama_deploy import Client
from llama_deploy.errors import LlamaDeployError
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import Program
from tests.faults.conftest import PROGRAMS, System

pytestmark = pytest.mark.faults

NAMES = ("InThread", "InLoop", "Terminates", "Waits")
NOTICED_SECONDS = 2.0


def served(system: System, how: str) -> Program:
    """Start everything in one process, on fixed ports over one store."""
    if how == "deploy_core":
        return system.module("forking")
    targets = [f"{name}={PROGRAMS / 'forking.py'}:{name}" for name in NAMES]
    env = system.env
    ports = ("--port", env["CONTROL_PLANE_PORT"], "--queue-port", env["SIMPLE_MESSAGE_QUEUE_PORT"])
    argv = ["-m", "llama_deploy.cli", "serve", *targets, *ports]
    return system.run(argv)


async def run(client: Client, name: str, kind: str) -> list[int]:
    """Run a task as soon as the service is there."""

    async def try_it() -> list[list[int]] | None:
        try:
            return [await client.run(name, kind=kind)]
        except LlamaDeployError:
            return None

    found = await eventually(try_it, seconds=60)
    assert found is not None
    return found[0]


@contextmanager
def ended(pids: list[int]) -> Iterator[None]:
    """End children that have outlived their process."""
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("how", ["serve", "deploy_core"])
@pytest.mark.parametrize("service", ["InThread", "InLoop"])
@pytest.mark.parametrize("kind", ["pool", "executor", "fork", "subprocess"])
async def test_a_killed_process_starts_again_although_its_children_live(
    system: System, how: str, service: str, kind: str
) -> None:
    program = served(system, how)
    async with system.client() as client:
        pids = await run(client, service, kind)
        with ended(pids):
            task = await client.submit("Waits")
            waiting = http.client.HTTPConnection("127.0.0.1", system.control_plane_port, timeout=30)
            waiting.request("GET", f"/tasks/{task.task_id}?wait=30")
            program.kill()
            assert all(map(is_alive, pids))
            waiting.sock.settimeout(NOTICED_SECONDS)
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                await asyncio.to_thread(waiting.getresponse)
            waiting.close()
            program.start()
            with ended(await run(client, service, kind)):
                assert all(map(is_alive, pids))
                program.kill()  # a pool replaces workers that end before it
    assert "already in use" not in program.text
    assert "another control plane" not in program.text


@pytest.mark.parametrize("how", ["serve", "deploy_core"])
async def test_a_pool_can_be_terminated_and_its_parent_goes_on(system: System, how: str) -> None:
    program = served(system, how)
    async with system.client() as client:
        for _ in range(3):
            assert await asyncio.wait_for(run(client, "Terminates", "pool"), 60) == [1, 2]
    assert "Waiting for running tasks" not in program.text
    assert program.stop() in (0, -signal.SIGTERM)
