"""`/health/live` and `/health/ready` of a control plane and of the simple queue."""

from __future__ import annotations

import asyncio
import logging
import resource
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.deploy import LocalStack
from llama_deploy.deploy.stack import HostedWorkflow
from llama_deploy.errors import UnavailableError
from llama_deploy.message_queues import (
    AbstractMessageQueue,
    LocalMessageQueue,
    SimpleMessageQueue,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
)
from llama_deploy.metric_texts import METRICS_PATH
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.types import ServiceDefinition
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.full_disks import no_disk_writes
from tests.integration.conftest import submit


async def probe(url: str, path: str = "/health/ready", **options: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(url + path, **options) as response:
        return response.status, await response.json()


async def failing(url: str) -> dict[str, str]:
    """Return the checks that fail, with their reasons."""
    status, body = await probe(url)
    found = {name: check["reason"] for name, check in body["checks"].items() if not check["ok"]}
    assert (status, body["status"]) == ((503, "failing") if found else (200, "ok"))
    return found


async def until_failing(url: str, name: str) -> str:
    """Wait until a check fails, and return its reason; an outcome is at most a second old."""
    reasons: list[str] = []

    async def fails() -> bool:
        reasons.extend(reason for check, reason in (await failing(url)).items() if check == name)
        return bool(reasons)

    await eventually(fails)
    return reasons[0]


async def until_ready(url: str) -> None:
    async def is_ready() -> bool:
        return not await failing(url)

    await eventually(is_ready)


async def register(server: ControlPlaneServer) -> None:
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))


async def test_a_control_plane_that_works_is_ready(server: ControlPlaneServer) -> None:
    url = server.config.url
    assert await probe(url, "/health/live") == (200, {"status": "ok", "checks": {}})
    status, body = await probe(url)
    assert status == 200
    assert set(body["checks"]) == {"store", "disk", "queue", "dispatch", "process"}
    assert all(check == {"ok": True, "reason": ""} for check in body["checks"].values())


async def test_a_control_plane_whose_disk_is_full_is_not_ready(
    server: ControlPlaneServer, http: HttpConnection, caplog: pytest.LogCaptureFixture
) -> None:
    with no_disk_writes():
        reason = await until_failing(server.config.url, "store")
        with pytest.raises(UnavailableError, match="store: the state store"):
            await http.request(HttpRequest("GET", "/health"))
        assert (await probe(server.config.url, "/health/live"))[0] == 200
    assert "state.db" in reason
    with caplog.at_level(logging.INFO):
        await until_ready(server.config.url)
    told = [each.getMessage() for each in caplog.records if each.name.endswith("control_plane.readiness")]
    assert [told[0].partition(": the")[0], told[-1]] == ["not ready: store", "ready again: store"]


async def test_a_control_plane_whose_store_is_locked_is_told_in_time(
    server: ControlPlaneServer, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    probes = await asyncio.gather(*(failing(server.config.url) for _ in range(20)))
    assert all("store" in found for found in probes)
    other.execute("ROLLBACK")
    other.close()
    await until_ready(server.config.url)


async def test_a_moved_database_file_is_told_and_takes_no_tasks(
    server: ControlPlaneServer, http: HttpConnection, tmp_path: Path
) -> None:
    await register(server)
    file, aside = tmp_path / "state.db", tmp_path / "aside.db"
    file.rename(aside)
    with pytest.raises(UnavailableError, match=r"state\.db .*was deleted, moved or replaced"):
        await submit(http)
    assert "was deleted, moved or replaced" in await until_failing(server.config.url, "store")
    aside.rename(file)
    await until_ready(server.config.url)
    await submit(http)


@pytest.mark.parametrize("ending", ["", "-wal", "-shm"])
async def test_a_replaced_database_file_is_told(
    server: ControlPlaneServer, http: HttpConnection, tmp_path: Path, ending: str
) -> None:
    await register(server)
    file = tmp_path / f"state.db{ending}"
    (tmp_path / "copy").write_bytes(file.read_bytes())
    (tmp_path / "copy").rename(file)
    assert file.name in await until_failing(server.config.url, "store")
    with pytest.raises(UnavailableError, match="was deleted, moved or replaced"):
        await submit(http)


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Let this process open only so many more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_the_end_of_file_descriptors_is_told(server: ControlPlaneServer) -> None:
    url = f"{server.config.url}/health/ready"
    async with aiohttp.ClientSession() as session:
        await session.get(url)  # connects

        async def is_told() -> bool:
            async with session.get(url) as response:
                reason = (await response.json())["checks"]["process"]["reason"]
            return response.status == 503 and "file descriptors left" in reason

        with few_descriptors(free=5):
            await eventually(is_told)
    await until_ready(server.config.url)


@asynccontextmanager
async def control_plane_of(queue: AbstractMessageQueue, tmp_path: Path) -> AsyncIterator[ControlPlaneServer]:
    config = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")
    async with queue, ControlPlaneServer(queue, config=config) as server:
        yield server


async def test_a_control_plane_whose_broker_is_away_is_not_ready(tmp_path: Path, proxy: TcpProxy) -> None:
    async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as broker:
        await proxy.start(broker.config.port)
        queue = SimpleMessageQueue(SimpleMessageQueueConfig(port=proxy.port))
        async with control_plane_of(queue, tmp_path) as server:
            url = server.config.url
            await until_ready(url)
            proxy.hold()  # the broker is silent
            assert "has not answered" in await until_failing(url, "queue")
            proxy.resume()
            await until_ready(url)
            proxy.target_ports = [1]  # it is gone
            proxy.cut()
            assert str(proxy.port) in await until_failing(url, "queue")
            proxy.target_ports = [broker.config.port]
            await until_ready(url)


class DenyingQueue(LocalMessageQueue):
    """Answers, but may let nobody publish."""

    denies = False

    async def _publish(self, message: Any, topic: str) -> None:
        if self.denies:
            raise UnavailableError("publishing is denied")
        await super()._publish(message, topic)


async def test_a_control_plane_whose_messages_do_not_leave_is_not_ready(tmp_path: Path) -> None:
    queue = await DenyingQueue.start()
    async with control_plane_of(queue, tmp_path) as server:
        await register(server)
        await until_ready(server.config.url)
        queue.denies = True
        http = HttpConnection(server.config.url)
        await submit(http)
        await http.close()
        assert "publishing is denied" in await until_failing(server.config.url, "dispatch")
        queue.denies = False
        await until_ready(server.config.url)


async def test_probes_of_load_balancers_need_no_trusted_host(server: ControlPlaneServer) -> None:
    headers = {"Host": "balancer.example"}
    for path in ("/health/live", "/health/ready"):
        assert (await probe(server.config.url, path, headers=headers))[0] == 200
    with no_disk_writes():
        await until_failing(server.config.url, "store")
        answer = await probe(server.config.url, headers=headers)
        assert answer == (503, {"status": "failing", "checks": {}})


async def test_the_simple_queue_tells_that_its_journal_cannot_be_written(tmp_path: Path) -> None:
    config = SimpleMessageQueueConfig(port=0, journal_path=tmp_path / "journal.db")
    async with SimpleMessageQueueServer(config) as broker:
        await until_ready(broker.config.base_url)
        with no_disk_writes():
            assert "journal.db" in await until_failing(broker.config.base_url, "queue")
        await until_ready(broker.config.base_url)
        (tmp_path / "journal.db").unlink()
        assert "was deleted" in await until_failing(broker.config.base_url, "queue")


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("text"))


async def test_a_stack_and_its_services_are_ready_until_a_service_stops(tmp_path: Path) -> None:
    config = ControlPlaneConfig(port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db")
    stack = await LocalStack.start(
        [HostedWorkflow.named("echo", Echo)],
        control_plane_config=config,
        message_queue_config=SimpleMessageQueueConfig(port=0),
    )
    async with stack:
        await until_ready(stack.control_plane_url)
        (service,) = stack.services
        assert {name: check.ok for name, check in service.health_checks().items()} == {
            "instance": True,
            "queue": True,
        }
        (running,) = [task for task in asyncio.all_tasks() if task.get_name() == "service echo"]
        running.cancel()
        assert "service echo" in await until_failing(stack.control_plane_url, "services")


async def test_head_is_answered_like_get_without_a_body(server: ControlPlaneServer) -> None:
    url = server.config.url
    async with aiohttp.ClientSession() as session:
        document = await (await session.get(f"{url}/openapi.json")).json()
        paths = [path for path, operations in document["paths"].items() if "get" in operations]
        assert len(paths) > 10
        for path in paths:
            target = url + path.replace("{", "").replace("}", "")
            async with session.get(target) as wanted, session.head(target) as answer:
                assert (answer.status, await answer.read()) == (wanted.status, b""), path
                if path != METRICS_PATH:  # which change with each request
                    assert answer.headers.get("content-length") == wanted.headers.get("content-length"), path
                assert answer.content_type == wanted.content_type, path


async def test_head_of_a_stream_ends(server: ControlPlaneServer, http: HttpConnection) -> None:
    await register(server)
    task = await submit(http)
    async with aiohttp.ClientSession() as session:
        for _ in range(2):  # the connection can be used again
            async with session.head(f"{server.config.url}/tasks/{task['task_id']}/events") as answer:
                assert (answer.status, await answer.read()) == (200, b"")


async def test_head_takes_no_messages_from_the_simple_queue() -> None:
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as broker,
        aiohttp.ClientSession(broker.config.base_url) as session,
    ):
        assert (await session.head("/topics")).status == 200
        assert (await session.head("/messages/t")).status == 405
        assert await (await session.get("/topics")).json() == {}
