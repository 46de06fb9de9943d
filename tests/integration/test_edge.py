"""No route of any server, fast or documented, can be reached past the layers of the edge."""

from __future__ import annotations

import asyncio
import http.client
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydantic_core
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy import (
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.control_plane.http.instance_routes import instance_shortcuts
from llama_deploy.control_plane.http.task_routes import task_shortcuts
from llama_deploy.deploy import LocalStack
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.queue_server import QueueRoutes, queue_shortcuts
from llama_deploy.web.edge.stack import EdgeSettings, build_edge
from llama_deploy.web.http_server import HttpServer
from llama_deploy.web.problems import MEDIA_TYPE

PAGE = "https://app.example"
SERVERS = ["control plane", "control plane with CORS", "queue", "service"]


class Echo(Workflow):
    @step
    async def echo(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.get("text"))


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    shortcuts: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


async def send(
    url: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Answer:
    """Send exactly these headers, `Host` and `Content-Length` beside them."""
    place = urlsplit(url)
    given = {"Host": place.netloc, **(headers or {})}

    def exchange() -> Answer:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in given.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    return await asyncio.to_thread(exchange)


@pytest.fixture
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)))
        if request.param == "queue":
            routes = queue_shortcuts(QueueRoutes(SimpleBroker(clock=asyncio.get_running_loop())))
            yield Served(queue.config.base_url, frozenset(routes))
        elif request.param == "service":
            service_config = WorkflowServiceConfig(host="127.0.0.1", port=0)
            service = WorkflowService(Echo(), queue.local_queue(), service_config)
            serving = asyncio.create_task(service.launch_server())
            await service.wait_listening()
            yield Served(service.url)
            serving.cancel()
            await asyncio.wait([serving])
        else:
            origins = [PAGE] if request.param == "control plane with CORS" else None
            config = ControlPlaneConfig(
                port=0, state_store_uri=f"sqlite:///{tmp_path}/state.db", cors_origins=origins
            )
            server = await stack.enter_async_context(ControlPlaneServer(queue.local_queue(), config=config))
            shortcuts = {**task_shortcuts(server.plane), **instance_shortcuts(server.plane)}
            yield Served(server.config.url, frozenset(shortcuts))


async def routes_of(served: Served) -> list[tuple[str, str]]:
    """Return method and path of every route: documented, documentation, shortcuts, and one that is none."""
    document: dict[str, Any] = pydantic_core.from_json((await send(served.url, "GET", "/openapi.json")).body)
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert len(routes) > 2
    routes |= served.shortcuts
    routes |= {("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/unknown")}
    return [(method, re.sub(r"{[^}]*}|(?<=.)/$", "x", path)) for method, path in sorted(routes)]


def check_problem(answer: Answer, status: int, name: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, MEDIA_TYPE)
    assert pydantic_core.from_json(answer.body)["type"] == f"urn:llama-deploy:problem:{name}"


@pytest.mark.parametrize("served", SERVERS, indirect=True)
async def test_every_route_refuses_a_foreign_host(served: Served) -> None:
    for method, path in await routes_of(served):
        if path in ("/health/live", "/health/ready"):
            # A load balancer may not know the name; it learns the status only.
            answer = await send(served.url, method, path, {"Host": "evil.example"})
            document = pydantic_core.from_json(answer.body)
            assert (answer.status, document["status"]) in ((200, "ok"), (503, "failing"))
            assert document["checks"] == {}
            continue
        check_problem(await send(served.url, method, path, {"Host": "evil.example"}), 421, "untrusted_host")


@pytest.mark.parametrize("served", SERVERS, indirect=True)
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
async def test_every_route_refuses_foreign_pages(served: Served, headers: dict[str, str]) -> None:
    for method, path in await routes_of(served):
        check_problem(await send(served.url, method, path, headers, b""), 403, "foreign_origin")


@pytest.mark.parametrize("served", SERVERS, indirect=True)
async def test_every_route_refuses_a_preflight_for_foreign_pages(served: Served) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for _, path in await routes_of(served):
        answer = await send(served.url, "OPTIONS", path, headers)
        check_problem(answer, 403, "foreign_origin")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("served", SERVERS, indirect=True)
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}])
async def test_every_route_refuses_a_body_that_is_not_json(served: Served, headers: dict[str, str]) -> None:
    for method, path in await routes_of(served):
        if method in ("POST", "PUT"):
            answer = await send(served.url, method, path, headers, b"{}")
            check_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("served", ["control plane with CORS"], indirect=True)
async def test_an_allowed_page_uses_every_route(served: Served) -> None:
    for method, path in await routes_of(served):
        asked = {"Origin": PAGE, "Access-Control-Request-Method": method}
        preflight = await send(served.url, "OPTIONS", path, asked)
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
        target = f"{path}?wait=0" if path == "/events" else path  # a feed that ends
        answer = await send(
            served.url, method, target, {"Origin": PAGE, "Content-Type": "application/json"}, b""
        )
        assert answer.status not in (403, 415, 421)
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("served", ["control plane"], indirect=True)
async def test_a_websocket_is_not_opened(served: Served) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert (await send(served.url, "GET", "/tasks/x", headers)).status == 404


async def test_names_from_the_settings_are_served(tmp_path: Path) -> None:
    async with SimpleMessageQueueServer(
        SimpleMessageQueueConfig(port=0, trusted_hosts=["queue.internal"])
    ) as queue:
        config = ControlPlaneConfig(
            port=0,
            host="plane.internal",
            internal_host="127.0.0.1",
            state_store_uri=f"sqlite:///{tmp_path}/state.db",
            trusted_hosts=["*.example"],
        )
        async with ControlPlaneServer(queue.local_queue(), config=config) as server:
            plane = f"http://127.0.0.1:{server.config.port}"
            for url, host in [
                (plane, "plane.internal"),
                (plane, "www.example:80"),
                (plane, "[::1]:8000"),
                (queue.config.base_url, "queue.internal"),
            ]:
                assert (await send(url, "GET", "/health", {"Host": host})).status == 200


async def test_the_queue_beside_a_control_plane_is_reached_under_its_host(tmp_path: Path) -> None:
    config = ControlPlaneConfig(
        port=0,
        host="plane.internal",
        internal_host="127.0.0.1",
        trusted_hosts=["plane.example"],
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
    )
    queue_config = SimpleMessageQueueConfig(port=0)
    async with await LocalStack.start(
        [], control_plane_config=config, message_queue_config=queue_config
    ) as stack:
        for host in ("plane.internal", "plane.example"):
            assert (await send(stack.message_queue_url, "GET", "/", {"Host": host})).status == 200


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_request_that_is_cancelled_with_its_process_is_answered(
    *, has_begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def cancelled(_scope: Scope, _receive: Receive, send: Send) -> None:
        if has_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise asyncio.CancelledError

    app = build_edge(Starlette(routes=[Mount("/", cancelled)]), EdgeSettings(env_prefix="TEST_", hosts=()))
    server = await HttpServer.start(app, host="127.0.0.1", port=0)
    try:
        answer = await send(f"http://127.0.0.1:{server.port}", "GET", "/")
    finally:
        await server.close()
    if has_begun:
        assert (answer.status, answer.body) == (200, b"begun")
    else:
        check_problem(answer, 503, "unavailable")
    assert not caplog.records
