"""Requests that wait for the end of a task."""

from __future__ import annotations

import asyncio
import json
import re
import time
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import pytest

from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.conftest import Instance, read_stream

SIZE: Final = 500_000
WAITING: Final = 6
WAIT_SECONDS: Final = 20


@pytest.fixture
def config(config: ControlPlaneConfig) -> ControlPlaneConfig:
    return config.model_copy(update={"max_total_body_bytes": 2 * SIZE})


async def submit_large(http: HttpConnection, task_id: str, *, wait: float) -> str:
    body = {"task_id": task_id, "service_name": "echo", "arguments": {"text": "x" * SIZE}}
    request = HttpRequest("POST", "/tasks", json=body, params={"wait": wait}, timeout=60)
    view = await http.request(request)
    return f"{view['task_id']} {view['status']}"


async def test_large_submissions_that_wait_leave_room_for_others(
    http: HttpConnection, instance: Instance
) -> None:
    begun = time.monotonic()
    waiting = [
        asyncio.create_task(submit_large(http, f"waiting-{n}", wait=WAIT_SECONDS)) for n in range(WAITING)
    ]
    dispatches = [await instance.next_dispatch() for _ in range(WAITING)]
    assert await submit_large(http, "further", wait=0) == "further queued"
    assert time.monotonic() - begun < WAIT_SECONDS
    for dispatch in dispatches:
        assert (await instance.claim(dispatch)).granted
        await instance.finish(dispatch)
    assert await asyncio.gather(*waiting) == [f"waiting-{n} succeeded" for n in range(WAITING)]


@pytest.mark.parametrize("task_id", ["done", "open", "of nobody", "nobody", "a/b", "..."])
@pytest.mark.parametrize("wait", ["0", "0.1", "0.0", "61", "-1", "x", ""])
async def test_the_shortcut_for_those_who_wait_answers_as_the_route_does(
    http: HttpConnection, instance: Instance, task_id: str, wait: str
) -> None:
    for each in ("done", "open", "of nobody", "a/b", "..."):
        await http.request(HttpRequest("POST", "/tasks", json={"task_id": each, "service_name": "echo"}))
    dispatches = {each.task_id: each for each in [await instance.next_dispatch() for _ in range(5)]}
    assert (await instance.claim(dispatches["done"])).granted
    await instance.finish(dispatches["done"])
    await read_stream(http, "/tasks/done/events")
    path = f"/tasks/{quote(task_id, safe='')}"
    by_shortcut = await http.send(HttpRequest("GET", path, params={"wait": wait}))
    by_route = await http.send(HttpRequest("GET", f"{path}?by=route", params={"wait": wait}))
    assert (by_shortcut[0], json.loads(by_shortcut[1])) == (by_route[0], json.loads(by_route[1]))


async def test_the_shortcut_hides_no_route_below_that_of_tasks(http: HttpConnection) -> None:
    document = await http.request(HttpRequest("GET", "/openapi.json"))
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    routes = [path for path in paths if re.fullmatch(r"/tasks/[^/{]+", path)]
    assert "/tasks/count" in routes
    for route in routes:
        status, _ = await http.send(HttpRequest("GET", f"{route}?wait=1"))
        assert status != HTTPStatus.NOT_FOUND, f"name {route} in task_routes"
