"""A step learns of its task, and calls other services through the control plane that serves it."""
# ruff: noqa: ARG002 - the library finds a step's event by its annotation, whether the step uses it or not

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.resource import Resource

from llama_deploy import Client, ControlPlaneConfig, LocalStack, SimpleMessageQueueConfig
from llama_deploy.deploy import HostedWorkflow
from llama_deploy.errors import ConfigError
from llama_deploy.services.supervised_gateway import connection_facts
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.serving_control_plane import ServingControlPlane, serving_control_plane
from llama_deploy.workflow import ServiceClient, TaskInfo, current_task


class Adder(Workflow):
    @step
    async def add(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=ev.a + ev.b)


class Asks(Workflow):
    """Calls another service in each way that there is."""

    @step
    async def by_resource(self, ev: StartEvent, client: ServiceClient) -> StopEvent:
        return StopEvent(result=await client.run("adder", a=1, b=ev.b))


class AsksAnnotated(Workflow):
    @step
    async def annotated(
        self, ev: StartEvent, client: Annotated[ServiceClient, Resource(Client, cache=False)]
    ) -> StopEvent:
        return StopEvent(result=await client.run("adder", a=1, b=ev.b))


class AsksByHand(Workflow):
    @step
    async def by_hand(self, ev: StartEvent) -> StopEvent:
        async with Client() as client:
            return StopEvent(result=await client.run("adder", a=1, b=ev.b))


class AsksInThread(Workflow):
    @step
    def in_thread(self, ev: StartEvent) -> StopEvent:
        with Client().sync as client:
            return StopEvent(result=client.run("adder", a=1, b=ev.b))


class AsksInBackground(Workflow):
    @step
    async def in_background(self, ev: StartEvent, client: ServiceClient) -> StopEvent:
        async with asyncio.TaskGroup() as group:
            added = [group.create_task(client.run("adder", a=1, b=ev.b)) for _ in range(3)]
        return StopEvent(result=max(task.result() for task in added))


class Tells(Workflow):
    @step
    async def first(self, ev: StartEvent, ctx: Context, task: TaskInfo) -> StopEvent:
        known = current_task()
        assert known == task
        inner = await asyncio.to_thread(current_task)
        assert inner == task
        return StopEvent(result=[task.task_id, task.session_id, task.service_name, task.attempt])


class TellsInThread(Workflow):
    @step
    def first(self, ev: StartEvent, task: Annotated[TaskInfo, "documented"]) -> StopEvent:
        assert current_task() == task
        return StopEvent(result=[task.task_id, task.session_id, task.service_name, task.attempt])


async def run(make: Callable[[], Workflow], **arguments: Any) -> tuple[Any, str, str]:
    """Run a task of a workflow beside an adder, at ports that nobody knows."""
    stack = await LocalStack.start(
        [HostedWorkflow.named("asking", make), HostedWorkflow.named("adder", Adder)],
        control_plane_config=ControlPlaneConfig(port=0, state_store_uri="sqlite:///:memory:"),
        message_queue_config=SimpleMessageQueueConfig(port=0),
    )
    async with stack, Client(stack.control_plane_url, timeout=10) as client:
        handle = await client.submit("asking", **arguments)
        return await handle.result(), handle.task_id, handle.session_id or ""


@pytest.mark.parametrize("make", [Asks, AsksAnnotated, AsksByHand, AsksInThread, AsksInBackground, Asks()])
async def test_a_step_calls_another_service(
    make: Callable[[], Workflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "http://127.0.0.1:9")
    assert (await run(make, b=2))[0] == 3


@pytest.mark.parametrize("make", [Tells, TellsInThread, Tells()])
async def test_a_step_learns_of_its_task(make: Callable[[], Workflow]) -> None:
    (task_id, session_id, service_name, attempt), given, _ = await run(make)
    assert (task_id, service_name, attempt) == (given, "asking", 1)
    assert session_id


async def test_without_a_service_there_is_no_task() -> None:
    assert current_task() is None
    with pytest.raises(ConfigError, match="there is no task"):
        await Tells().run()


async def test_without_a_service_a_client_connects_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_DEPLOY_CONTROL_PLANE_URL", "http://127.0.0.1:9")

    class Shows(Workflow):
        @step
        async def show(self, ev: StartEvent, client: ServiceClient) -> StopEvent:
            return StopEvent(result=client.control_plane_url)

    assert await Shows().run() == "http://127.0.0.1:9"


def test_credentials_of_the_control_plane_are_those_of_the_clients() -> None:
    given = ConnectionSettings(urls="http://ann:S3cret@127.0.0.1:9")
    sent = given.headers_for(given.urls[0])
    known = serving_control_plane.set(ServingControlPlane(given))
    try:
        for client in (Client(), Client().sync):
            settings = client.settings.connect_to(client.settings.control_plane_url)
            assert settings.headers_for(settings.urls[0]) == sent
    finally:
        serving_control_plane.reset(known)
    facts = ConnectionSettings(**json.loads(json.dumps(connection_facts(given)))["settings"])
    assert facts.headers_for(facts.urls[0]) == sent
