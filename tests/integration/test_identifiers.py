"""Every id that is accepted can be reached, and what no path or no line of a log can hold is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from workflows import Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client
from llama_deploy.client import SyncClient
from llama_deploy.errors import InvalidRequestError, TaskNotFoundError
from llama_deploy.types import SessionOptions, TaskSubmission
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from tests.integration.in_process import Stack, running_stack

IDS = [
    "a/b",
    "/",
    "a%2Fb",
    "a//b/",
    "..a",
    "a/../b",
    "a b?c#d&e=f+g",
    "你好",
    "é" * 255,
    "x" * 255,
    "%",
    "a\\b;c",
]
REFUSED = [
    "",
    ".",
    "..",
    "x" * 256,
    "a\nb",
    "a\n",
    "\x1b[31mred",
    "a\x9b31m",
    "tab\t",
    "nul\0",
    "a\x1fb",
    "line\u2028",
    "left\u202eright",
]


class Ask(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:  # noqa: ARG002 - its annotation counts
        return InputRequiredEvent()

    @step
    async def answer(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as stack, stack.serving(stack.service(Ask())):
        yield stack


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[HttpConnection]:
    connection = HttpConnection(stack.server.config.url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("name", IDS)
async def test_a_task_and_a_session_with_any_id_can_be_reached(stack: Stack, name: str) -> None:
    session_id = f"{name}s"[-255:]
    async with Client(stack.server.config.url, timeout=20) as client:
        await stack.plane.sessions.create(SessionOptions(session_id=session_id))
        await stack.plane.tasks.submit(
            TaskSubmission(service_name="service", task_id=name, session_id=session_id)
        )
        session = await client.core.sessions.get(session_id)
        assert [task.task_id for task in await session.get_tasks()] == [name]
        await session.update_state({"a": 1})
        assert (await session.get_state()).state == {"a": 1}
        await session.send_event("service", name, HumanResponseEvent(response="yes"))
        handle = client.task(name)
        assert await handle.result() == "yes"
        assert [event.type async for event in handle.events()] == ["InputRequiredEvent", "StopEvent"]
        assert (await handle.info()).session_id == session_id
        result = await session.get_task_result(name)
        assert result is not None
        assert result.task_id == name
        await client.core.sessions.delete(session_id)
        with pytest.raises(TaskNotFoundError):
            await handle.info()


async def test_the_client_without_await_reaches_them_too(stack: Stack) -> None:
    await stack.plane.tasks.submit(TaskSubmission(service_name="service", task_id="a/b", session_id=None))

    def cancel() -> str:
        with SyncClient(control_plane_url=stack.server.config.url) as client:
            handle = client.task("a/b")
            handle.send(HumanResponseEvent(response="yes"))
            return str(handle.result())

    assert await asyncio.to_thread(cancel) == "yes"


@pytest.mark.parametrize("name", REFUSED)
async def test_other_ids_are_refused_wherever_they_enter(
    http: HttpConnection, stack: Stack, name: str
) -> None:
    session = await stack.session()
    task = {"input": "{}", "agent_id": "service"}
    for path, body in (
        ("/tasks", {"service_name": "service", "task_id": name}),
        ("/tasks", {"service_name": "service", "session_id": name}),
        (f"/sessions/{session}/tasks", {**task, "task_id": name}),
        ("/sessions/create", {"session_id": name}),
        ("/services/register", {"service_name": "other", "instance_id": name}),
        ("/services/register", {"service_name": name}),
    ):
        status, answer = await http.send(HttpRequest("POST", path, json=body))
        assert status == 422, (path, answer)
        assert not any(control in answer for control in (b"\n", b"\x1b", b"\x9b"))
        assert "\x1b" not in json.loads(answer)["detail"]


@pytest.mark.parametrize("name", ["%1B[31m", "a%0Ab", "x" * 256])
async def test_paths_refuse_them(http: HttpConnection, name: str) -> None:
    for path in (f"/tasks/{name}", f"/sessions/{name}", f"/sessions/{name}/tasks/{name}/result"):
        status, answer = await http.send(HttpRequest("GET", path))
        assert status == 422, answer


@pytest.mark.parametrize("name", [".", ".."])
async def test_clients_do_not_send_what_a_path_would_lose(stack: Stack, name: str) -> None:
    async with Client(stack.server.config.url) as client:
        calls: list[Any] = [client.task(name).info(), client.core.sessions.get(name)]
        for call in calls:
            with pytest.raises(InvalidRequestError, match="cannot be an id"):
                await call


async def test_a_path_with_a_slash_too_many_is_not_a_task(http: HttpConnection) -> None:
    status, _ = await http.send(HttpRequest("GET", "/tasks/a/b"))
    assert status == 404
