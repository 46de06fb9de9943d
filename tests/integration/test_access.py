"""With authentication, every route of every server needs a key, and the scope that the table says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pydantic_core
import pytest
from pydantic import SecretStr
from starlette.types import Scope

from llama_deploy import (
    ControlPlaneConfig,
    ControlPlaneServer,
    SimpleMessageQueueConfig,
    SimpleMessageQueueServer,
    WorkflowService,
    WorkflowServiceConfig,
)
from llama_deploy.control_plane.http.callers import ControlPlaneCallers
from llama_deploy.control_plane.http.instance_routes import instance_shortcuts
from llama_deploy.control_plane.http.task_routes import task_shortcuts
from llama_deploy.errors import AuthenticationError, ConfigError
from llama_deploy.message_queues.simple.broker import SimpleBroker
from llama_deploy.message_queues.simple.queue_server import QueueRoutes, queue_shortcuts
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types.callers import AccessScope, Caller
from llama_deploy.web.edge import access_table
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import AccessTable
from tests.integration.guarded_server import ADMIN, guarded_server
from tests.integration.test_edge import Echo, check_problem, send

OPEN = {"/health/live", "/health/ready", "/callbacks/x"}
SERVERS = ["control plane", "queue", "service"]


class ByName(ControlPlaneCallers):
    """Takes the scopes of a caller from the key that it sends: `Bearer tasks:read`."""

    async def authenticate(self, scope: Scope) -> Caller:
        sent = dict(scope["headers"]).get(b"authorization", b"").decode()
        if not sent.startswith("Bearer "):
            raise AuthenticationError("no key")
        return Caller("test", "", frozenset(sent.removeprefix("Bearer ").split(",")))


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    table: AccessTable
    shortcuts: frozenset[tuple[str, str]] = frozenset()


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_state_store("sqlite:///:memory:"))
        callers = ByName(ControlPlaneConfig(), store)
        queue = await stack.enter_async_context(
            SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0), authenticator=callers)
        )
        if request.param == "queue":
            routes = queue_shortcuts(QueueRoutes(SimpleBroker(clock=asyncio.get_running_loop())))
            yield Served(queue.config.base_url, access_table.QUEUE_ACCESS, frozenset(routes))
        elif request.param == "service":
            config = WorkflowServiceConfig(host="127.0.0.1", port=0, api_key=SecretStr(ADMIN))
            service = WorkflowService(Echo(), queue.local_queue(), config)
            serving = asyncio.create_task(service.launch_server())
            await service.wait_listening()
            yield Served(service.url, access_table.SERVICE_ACCESS)
            serving.cancel()
            await asyncio.wait([serving])
        else:
            plane_config = ControlPlaneConfig(port=0, authentication="keys")
            server = await stack.enter_async_context(
                ControlPlaneServer(
                    queue.local_queue(), config=plane_config, callers=callers, state_store=store
                )
            )
            shortcuts = {**task_shortcuts(server.plane), **instance_shortcuts(server.plane)}
            yield Served(server.config.url, access_table.CONTROL_PLANE_ACCESS, frozenset(shortcuts))


async def documented(served: Served) -> set[tuple[str, str]]:
    key = {"Authorization": f"Bearer {ADMIN}"}
    answer = await send(served.url, "GET", "/openapi.json", key)
    paths = pydantic_core.from_json(answer.body)["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def requests(routes: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield method and path of a request for each route that needs a key."""
    for method, path in sorted(routes):
        real = re.sub(r"{[^}]*}|(?<=./)$", "x", path)
        if real not in OPEN:
            yield method, real


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("served", SERVERS, indirect=True)
async def test_every_route_needs_a_key(served: Served) -> None:
    routes = await documented(served) | served.shortcuts
    routes |= {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc"), ("POST", "/unknown")}
    routes |= {("HEAD", path) for method, path in routes if method == "GET"}
    wrong = [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}]
    for method, path in requests(routes):
        for headers in wrong:
            answer = await send(served.url, method, path, {**JSON, **headers}, b"")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method == "HEAD":
                assert answer.status == 401
            else:
                check_problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize("served", ["control plane", "queue"], indirect=True)
async def test_every_route_needs_its_scope(served: Served) -> None:
    templates = await documented(served)
    for method, template in templates:
        needed = served.table[method, template]
        path = re.sub(r"{[^}]*}", "x", template)
        for scope in [*AccessScope, "none"]:
            headers = {**JSON, "Authorization": f"Bearer {scope}"}
            passes = needed.is_open or not needed.scopes or scope in needed.scopes or scope == "admin"
            if passes and path == "/events":
                path = "/events?wait=0"  # a feed that ends
            answer = await send(served.url, method, path, headers, b"")
            if passes:
                assert answer.status not in (401, 403), (method, template, scope)
            else:
                check_problem(answer, 403, "permission_denied")
                assert "insufficient_scope" in answer.headers["www-authenticate"]
                problem = pydantic_core.from_json(answer.body)
                assert set(problem["scope"].split(" or ")) == set(needed.scopes)


@pytest.mark.parametrize("served", ["control plane", "queue"], indirect=True)
async def test_a_shortcut_needs_the_scope_of_its_route(served: Served) -> None:
    assert served.shortcuts
    for method, path in requests(set(served.shortcuts)):
        answer = await send(served.url, method, path, {**JSON, "Authorization": "Bearer metrics:read"}, b"")
        check_problem(answer, 403, "permission_denied")


@pytest.mark.parametrize("served", SERVERS, indirect=True)
async def test_the_table_has_the_routes_and_no_others(served: Served) -> None:
    assert await documented(served) == served.table.keys()


def test_a_route_without_an_entry_cannot_be_built() -> None:
    router = new_router({("GET", "/a"): access_table.QUEUE_ACCESS["GET", "/"]})
    router.get("/a")(lambda: None)
    for method, path in [("POST", "/a"), ("GET", "/b")]:
        with pytest.raises(TypeError, match="no entry"):
            router.add_api_route(path, lambda: None, methods=[method])


@pytest.mark.parametrize("served", SERVERS, indirect=True)
async def test_probes_need_no_key_and_tell_nothing_without_one(served: Served) -> None:
    for path in ("/health/live", "/health/ready"):
        for headers in ({}, {"Authorization": "Basic eDp5"}):
            answer = await send(served.url, "GET", path, headers)
            document = pydantic_core.from_json(answer.body)
            assert document["status"] == ("ok" if answer.status == 200 else "failing")
            assert document["checks"] == {}
    # The service knows one key only, which has all rights.
    informed = ADMIN if served.table is access_table.SERVICE_ACCESS else "metrics:read"
    for name, tells in ((informed, True), ("tasks:read", False)):
        answer = await send(served.url, "GET", "/health/ready", {"Authorization": f"Bearer {name}"})
        assert bool(pydantic_core.from_json(answer.body)["checks"]) is tells


@pytest.mark.parametrize("served", ["control plane"], indirect=True)
async def test_a_callback_needs_no_key(served: Served) -> None:
    answer = await send(served.url, "POST", "/callbacks/abc", JSON, b"{}")
    check_problem(answer, 404, "callback_not_found")


async def test_the_admin_key_of_the_settings_does_everything(tmp_path: Path) -> None:
    async with guarded_server(tmp_path) as server:

        async def status(headers: Mapping[str, str]) -> int:
            return (await send(server.config.url, "GET", "/storage", headers)).status

        assert await status({"Authorization": f"Bearer {ADMIN}"}) == 200
        assert await status({"authorization": f"bearer {ADMIN}"}) == 200
        assert await status({"Authorization": f"Bearer {server.process_key}"}) == 403
        for key in (ADMIN[:-1], ADMIN + "x", "Zz", ADMIN.upper()):
            answer = await send(server.config.url, "GET", "/storage", {"Authorization": f"Bearer {key}"})
            check_problem(answer, 401, "unauthenticated")
            assert key.encode() not in answer.body
        home = await send(server.config.url, "GET", "/", {"Authorization": f"Bearer {ADMIN}"})
        assert home.status == 200
        assert ADMIN.encode() not in home.body
        assert b"admin_key" not in home.body
        assert ADMIN not in repr(server.config)


async def test_an_admin_key_needs_authentication() -> None:
    config = ControlPlaneConfig(port=0, admin_key=SecretStr(ADMIN))
    async with SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue:
        with pytest.raises(ConfigError, match="authentication is off"):
            ControlPlaneServer(queue.local_queue(), config=config)
