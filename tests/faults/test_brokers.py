"""Each broker is killed, forgets or is cut off, beside the processes of the system, and no task is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.chaos import Chaos
from tests.faults.conftest import System, errors_in
from tests.faults.test_kills import check_all_end_once, submit_all
from tests.servers.brokers import DURABLE, FORGETFUL, Broker
from tests.servers.postgresql import PostgreSQLServer
from tests.servers.proxy import TcpProxy

pytestmark = pytest.mark.faults

TASKS = 100
SEED = 20261123
SECONDS_OF_ROUNDS = 25.0
OUTAGE_SECONDS = 3.0


@pytest.fixture(params=DURABLE)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with DURABLE[request.param](folder) as broker:
        yield broker


async def test_rounds_of_faults(
    system: System,
    broker: Broker,
    postgresql_server: PostgreSQLServer,
    postgresql_uri: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    system.env["LLAMA_DEPLOY_QUEUE"] = broker.url
    system.env["CONTROL_PLANE_STATE_STORE_URI"] = postgresql_uri
    chaos = Chaos(system, seed=SEED, broker=broker, database=postgresql_server)
    figures = await chaos.run(seconds=SECONDS_OF_ROUNDS)
    with capsys.disabled():
        print(f"\nfaults over {broker.url.partition(':')[0]}, seed {SEED}: {figures}")  # noqa: T201
    assert figures.rounds > 0


@pytest.mark.parametrize("kind", FORGETFUL)
async def test_what_a_broker_forgets_is_dispatched_again(system: System, tmp_path: Path, kind: str) -> None:
    make, environment = FORGETFUL[kind]
    folder = tmp_path / "broker"
    folder.mkdir()
    with make(folder) as broker:
        system.env |= {
            "LLAMA_DEPLOY_QUEUE": broker.url,
            "CONTROL_PLANE_REDISPATCH_SECONDS": "2",
            **environment,
        }
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


async def test_the_way_to_a_broker_breaks(system: System, broker: Broker) -> None:
    async with TcpProxy() as proxy:
        port = await proxy.start(broker.port)
        system.env["LLAMA_DEPLOY_QUEUE"] = broker.url.replace(str(broker.port), str(port))
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
