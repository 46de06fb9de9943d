"""A worker process is killed and its supervisor reports it: nobody waits for the lease."""

from __future__ import annotations

import asyncio
import time

import pytest

from llama_deploy import Client
from llama_deploy.testing.conditions import eventually
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.sync_http_connection import SyncHttpConnection
from tests.faults.conftest import System
from tests.pulse import Pulse

pytestmark = pytest.mark.faults

AT_ONCE_SECONDS = 0.5
REPORTS = "llama_deploy.control_plane"


async def instances(client: Client) -> set[str]:
    (service,) = await client.core.services.list()
    return {instance.instance_id for instance in service.instances}


async def report_death(system: System, dead: set[str]) -> None:
    """Report a death as a supervisor does, which has no event loop."""
    connection = SyncHttpConnection(system.url)
    body = {"instances": sorted(dead), "reason": "was killed by SIGKILL"}
    await asyncio.to_thread(connection.request, HttpRequest("POST", "/instances/death", json=body))
    connection.close()


async def test_another_process_claims_its_task_at_once(system: System, pulse: Pulse) -> None:
    system.start("core.py")
    async with system.client() as client:
        first = system.service()
        await system.instances(client, 1)
        of_first = await instances(client)
        second = system.service()
        await system.instances(client, 2)
        of_second = await instances(client) - of_first
        handle = await client.submit("ledger", name="long", seconds=1)
        await system.begun(1)
        (pid,) = system.runs_of("long")
        victim, dead = (first, of_first) if pid == first.pid else (second, of_second)
        victim.kill()
        killed = time.monotonic()
        await report_death(system, dead)
        await system.begun(2)
        assert pulse.idle_seconds(killed) < AT_ONCE_SECONDS
        assert not dead & await instances(client)
        assert await handle.result() == "long 1"
        assert (await handle.info()).attempt == 2


async def test_a_task_whose_end_is_in_the_queue_does_not_run_again(system: System) -> None:
    system.start("core.py", "message_queue")
    control_plane = system.start("core.py", "control_plane")
    victim = system.service()
    queue = HttpConnection(f"http://127.0.0.1:{system.env['SIMPLE_MESSAGE_QUEUE_PORT']}")

    async def is_reported() -> bool:
        topics = await queue.request(HttpRequest("GET", "/topics"))
        return bool(topics[REPORTS]["messages"])

    async with system.client() as client:
        await system.instances(client, 1)
        dead = await instances(client)
        handle = await client.submit("ledger", name="short", seconds=1)
        await system.begun(1)
        control_plane.pause()
        await eventually(is_reported, seconds=90)
        victim.kill()
        control_plane.resume()
        await report_death(system, dead)
        system.service()
        assert await handle.result() == "short 1"
        assert (await handle.info()).attempt == 1
    await queue.close()
    assert system.ledger("begin")["short"] == 1
