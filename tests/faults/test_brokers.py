"""Each broker is killed, forgets or is cut off, beside the processes of the system, and no task is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from llama_deploy.testing.processes import free_port
from llama_deploy.testing.tcp_proxy import TcpProxy
from tests.faults.chaos import Chaos
from tests.faults.conftest import System, errors_in
from tests.faults.service_parts import ServiceParts
from tests.faults.test_kills import check_all_end_once, submit_all
from tests.figures import Tell
from tests.servers.brokers import DURABLE, FASTEST, FORGETFUL, Broker, Kind, url_through
from tests.servers.postgresql import PostgreSQLServer

pytestmark = pytest.mark.faults

TASKS = 100
TASKS_OF_KAFKA = 20
SEED = 20261123
SECONDS = float(os.environ.get("FAULT_MINUTES", "0")) * 60 or 25.0
OUTAGE_SECONDS = 3.0


def make(kind: Kind, folder: Path, system: System) -> Broker:
    """Return a broker that is not started; what the queue needs to work over it goes to all processes."""
    folder.mkdir()
    system.env.update(kind.environment)
    return kind.make(folder)


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("kind", [kind for kind in DURABLE if kind != "kafka"])
async def test_rounds_of_faults(
    kind: str,
    system: System,
    tmp_path: Path,
    postgresql_server: PostgreSQLServer,
    postgresql_uri: str,
    tell: Tell,
) -> None:
    with make(DURABLE[kind], tmp_path / "broker", system) as broker:
        system.env["LLAMA_DEPLOY_QUEUE"] = broker.url
        system.env["CONTROL_PLANE_STATE_STORE_URI"] = postgresql_uri
        async with TcpProxy() as balancer:
            system.stand_behind(await balancer.start(free_port(), free_port()))
            parts = ServiceParts(system, broker=broker, database=postgresql_server, balancer=balancer)
            chaos = Chaos(system, parts, seed=SEED)
            figures = await chaos.run(seconds=SECONDS)
    tell(f"faults over {kind}, seed {SEED}: {figures}")
    assert figures.rounds > 0


@pytest.mark.parametrize("kind", DURABLE)
async def test_what_a_killed_broker_has_accepted_is_done_once(
    kind: str, system: System, tmp_path: Path
) -> None:
    with make(DURABLE[kind], tmp_path / "broker", system) as broker:
        system.env["LLAMA_DEPLOY_QUEUE"] = broker.url
        system.start("core.py", "control_plane")
        for _ in range(2):
            system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="5")
        async with system.client() as client:
            await system.instances(client, 2)
            tasks = TASKS_OF_KAFKA if kind == "kafka" else TASKS
            handles = await submit_all(client, tasks, seconds=0.2, events=3)
            await system.begun(tasks // 3)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            await check_all_end_once(handles)
    assert set(system.ledger("begin").values()) == {1}


@pytest.mark.parametrize("kind", FORGETFUL)
async def test_what_a_broker_forgets_is_dispatched_again(kind: str, system: System, tmp_path: Path) -> None:
    system.env["CONTROL_PLANE_REDISPATCH_SECONDS"] = "2"
    with make(FORGETFUL[kind], tmp_path / "broker", system) as broker:
        system.env["LLAMA_DEPLOY_QUEUE"] = broker.url
        system.start("core.py", "control_plane")
        for _ in range(2):
            system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="10")
        async with system.client() as client:
            await system.instances(client, 2)
            handles = await submit_all(client, TASKS, seconds=0.2, events=3)
            await system.begun(30)
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
            await check_all_end_once(handles)


@pytest.mark.parametrize("kind", FASTEST)
async def test_the_way_to_a_broker_breaks(kind: str, system: System, tmp_path: Path) -> None:
    broker = make(FASTEST[kind], tmp_path / "broker", system)
    async with TcpProxy() as proxy:
        system.env["LLAMA_DEPLOY_QUEUE"] = url_through(broker, await proxy.start(broker.port))
        with broker:
            control_plane = system.start("core.py", "control_plane")
            for _ in range(2):
                system.service(LLAMA_DEPLOY_WF_SERVICE_MAX_CONCURRENT_TASKS="5")
            async with system.client() as client:
                await system.instances(client, 2)
                handles = await submit_all(client, TASKS, seconds=0.2, events=3)
                for begun in (20, 40):
                    await system.begun(begun)
                    proxy.cut()
                proxy.delay = 0.02
                await system.begun(50)
                proxy.delay = 0.0
                proxy.hold()
                await asyncio.sleep(OUTAGE_SECONDS)  # how long the network is down
                proxy.cut()
                proxy.resume()
                await check_all_end_once(handles)
    # Nobody who ran a task died, so each ran once.
    assert set(system.ledger("begin").values()) == {1}
    assert errors_in(control_plane.text) == []
