"""What 0.6 did wrong without anybody being killed: misuse, bad input, and results that got lost.

Each test is one line of the list of faults in `docs/reference/faults.md`; kills are in `test_kills.py`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig, QueueMessage, SimpleMessageQueueConfig
from llama_deploy.deploy.stack import HostedWorkflow, LocalStack
from llama_deploy.errors import (
    InvalidRequestError,
    ServiceNotFoundError,
    TaskFailedError,
    TaskFinishedError,
    TaskNotFoundError,
)
from llama_deploy.messages import ActionTypes
from llama_deploy.testing.conditions import eventually
from llama_deploy.testing.processes import free_port
from llama_deploy.types import EventDefinition, ServiceDefinition, TaskDefinition
from llama_deploy.types.instance_protocol import AttemptOutcome
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import JSON_HEADERS, HttpRequest
from tests.pulse import Pulse


class Number(Event):
    n: int


class Unpickled:
    """Leaves a mark if anybody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


class Misused(Workflow):
    """Does what its argument `act` says."""

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        act = ev.get("act")
        if act == "raise":
            raise ZeroDivisionError("on purpose")
        if act == "exit":
            sys.exit(3)
        if act == "result":
            return StopEvent(result={"items": [1, object()]})
        if act == "state":
            await ctx.store.set("connection", object())
        if act == "event":
            ctx.write_event_to_stream(Event(handle=object()))
        if act == "stream":
            for n in range(ev.count):
                ctx.write_event_to_stream(Number(n=n))
        if act == "wait":
            await asyncio.sleep(60)
        runs = await ctx.store.get("runs", default=0) + 1
        await ctx.store.set("runs", runs)
        return StopEvent(result=runs)


class Asking(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        del ev
        return InputRequiredEvent(prefix="well?")

    @step
    async def take(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Calling(Workflow):
    """Calls another service inside a step, several times at once."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    @step
    async def call(self, ev: StartEvent) -> StopEvent:
        del ev
        calls = (self.client.run("misused") for _ in range(5))
        return StopEvent(result=await asyncio.gather(*calls))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    config = ControlPlaneConfig(port=free_port(), state_store_uri=f"sqlite:///{tmp_path}/state.db")
    async with Client(control_plane_url=config.url) as inner:
        workflows = [
            HostedWorkflow.named("misused", Misused(), max_concurrent_tasks=64),
            HostedWorkflow.named("asking", Asking()),
            HostedWorkflow.named("calling", Calling(inner)),
        ]
        queue = SimpleMessageQueueConfig(port=0)
        async with await LocalStack.start(
            workflows, control_plane_config=config, message_queue_config=queue
        ) as stack:
            yield stack


@pytest.fixture
async def user(stack: LocalStack) -> AsyncIterator[Client]:
    async with Client(control_plane_url=stack.control_plane_url, timeout=20) as client:
        yield client


async def failure(user: Client, act: str) -> TaskFailedError:
    with pytest.raises(TaskFailedError) as caught:
        await user.run("misused", act=act)
    return caught.value


async def test_a_workflow_that_raises(user: Client) -> None:
    error = await failure(user, "raise")
    assert (error.error_type, error.error_message) == ("builtins.ZeroDivisionError", "on purpose")
    assert "on purpose" in (error.traceback or "")


async def test_a_workflow_that_exits(user: Client) -> None:
    assert (await failure(user, "exit")).error_type == "builtins.SystemExit"
    assert await user.run("misused") == 1


async def test_what_cannot_be_serialised(user: Client) -> None:
    error = await failure(user, "event")
    assert error.error_type == "llama_deploy.errors.SerializationError"
    assert "event Event.handle" in (error.error_message or "")


async def test_a_result_without_a_json_form(user: Client) -> None:
    assert str(await user.run("misused", act="result")).startswith("{'items': [1, <object object at")


async def test_a_state_that_cannot_be_stored(user: Client) -> None:
    session = await user.core.sessions.create()
    # The rest of the state is stored.
    assert [await session.run("misused", act="state") for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("text", ["not json", "[1, 2]", "7"])
async def test_input_that_is_no_object(user: Client, text: str) -> None:
    session = await user.core.sessions.create()
    with pytest.raises(InvalidRequestError):
        await session.create_task(TaskDefinition(input=text, agent_id="misused"))


async def test_an_unknown_service(user: Client) -> None:
    with pytest.raises(ServiceNotFoundError, match="nobody"):
        await user.run("nobody")


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        json.dumps({"qualified_name": "app.Unknown", "value": {}}),
        json.dumps({"__is_pydantic": True, "qualified_name": "antigravity.Event", "value": {}}),
    ],
)
async def test_an_event_that_nobody_declared(user: Client, text: str) -> None:
    handle = await user.submit("asking")
    session = await user.core.sessions.get(str(handle.session_id))
    definition = EventDefinition(agent_id="asking", event_obj_str=text)
    with pytest.raises(InvalidRequestError):
        await session.send_event_def(handle.task_id, definition)
    assert "antigravity" not in sys.modules
    await handle.send(HumanResponseEvent(response="yes"))
    assert await handle.result() == "yes"


async def test_an_event_for_a_task_that_is_unknown_or_has_ended(user: Client) -> None:
    with pytest.raises(TaskNotFoundError):
        await user.task("nothing").send(HumanResponseEvent(response="yes"))
    handle = await user.submit("asking")
    await handle.send(HumanResponseEvent(response="yes"))
    assert await handle.result() == "yes"
    with pytest.raises(TaskFinishedError):
        await handle.send(HumanResponseEvent(response="no"))


async def test_a_pickle_in_the_session_state(user: Client, tmp_path: Path) -> None:
    session = await user.core.sessions.create()
    text = base64.b64encode(pickle.dumps(Unpickled(tmp_path / "mark"))).decode()
    with pytest.raises(InvalidRequestError):
        await session.update_state({"__workflow_state__": {"hash": None, "state": text}})
    await session.update_state({session.id: text, "state": text})
    assert await session.run("misused") == "1"
    assert not (tmp_path / "mark").exists()


async def test_a_forged_result(stack: LocalStack, user: Client) -> None:
    handle = await user.submit("misused", act="wait")
    running = await running_instance(handle)
    forged = AttemptOutcome(
        task_id=handle.task_id,
        attempt=1,
        token=running,
        first=0,
        events=[],
        status="succeeded",
        result="forged",
    )
    message = QueueMessage(action=ActionTypes.COMPLETED_TASK, data=forged.model_dump(mode="json"))
    queue = HttpConnection(stack.message_queue_url)
    path = "/messages/llama_deploy.control_plane"
    await queue.request(HttpRequest("POST", path, json=message.to_wire()))
    await queue.close()
    await user.run("misused")
    assert await handle.status() == "running"
    await handle.cancel()


async def running_instance(handle: Any) -> str:
    async def runs() -> bool:
        return bool(await handle.status() == "running")

    await eventually(runs)
    return str((await handle.info()).instance_id)


async def test_a_second_registration_under_the_same_name(user: Client) -> None:
    await user.core.services.register(
        ServiceDefinition(service_name="misused", instance_id="other", host="elsewhere", port=1)
    )
    (service,) = [item for item in await user.core.services.list() if item.id == "misused"]
    assert len(service.instances) == 2
    assert await user.run("misused") == 1


async def test_a_message_that_is_no_message(stack: LocalStack, user: Client) -> None:
    queue = HttpConnection(stack.message_queue_url)
    path = "/messages/llama_deploy.misused"
    request = HttpRequest("POST", path, content=b"not a message", headers=JSON_HEADERS)
    status, _ = await queue.send(request)
    assert status == 422
    await queue.request(HttpRequest("POST", path, json=QueueMessage(data={"no": "task"}).to_wire()))
    await queue.close()
    assert await user.run("misused") == 1


async def test_a_service_that_is_called_inside_a_step(user: Client) -> None:
    assert await user.run("calling") == [1, 1, 1, 1, 1]


async def test_fifty_tasks_at_once_in_one_session(user: Client) -> None:
    session = await user.core.sessions.create()
    ids = await asyncio.gather(*(session.run_nowait("misused") for _ in range(50)))
    results = [await user.task(task_id).result() for task_id in ids]
    assert sorted(results) == list(range(1, 51))
    assert {task.task_id for task in await session.get_tasks()} == set(ids)


async def test_the_stream_is_complete_however_early_the_result_is_read(user: Client) -> None:
    handles = [await user.submit("misused", act="stream", count=200) for _ in range(20)]
    for handle in handles:
        await handle.result()
        events = [event async for event in handle.events()]
        assert [event.data.get("n") for event in events[:-1]] == list(range(200))
        assert events[-1].terminal
        assert events[-1].data == {"result": 1}


@pytest.mark.parametrize("act", ["nothing", "raise"])
async def test_the_stream_of_a_run_without_events_or_that_failed(user: Client, act: str) -> None:
    handle = await user.submit("misused", act=act)
    async with asyncio.timeout(30):
        events = [event async for event in handle.events()]
    assert [event.terminal for event in events] == [True]


async def test_thirty_runs_in_one_session(user: Client, tmp_path: Path) -> None:
    session = await user.core.sessions.create()
    sizes = []
    for _ in range(30):
        await session.run("misused")
        with closing(sqlite3.connect(tmp_path / "state.db")) as database:
            query = "SELECT length(state) FROM sessions WHERE session_id = ?"
            ((size,),) = database.execute(query, [session.id])
        sizes.append(size)
    assert sizes[-1] - sizes[0] <= len("30") - len("1")


async def test_the_queue_config_holds_no_credentials(stack: LocalStack) -> None:
    control_plane = HttpConnection(stack.control_plane_url)
    settings = await control_plane.request(HttpRequest("GET", "/queue_config"))
    await control_plane.close()
    assert not {"password", "username", "client_kwargs"} & set(settings)


async def test_a_cancelled_task_ends(user: Client, pulse: Pulse) -> None:
    handle = await user.submit("misused", act="wait")
    await running_instance(handle)
    began = time.monotonic()
    await handle.cancel()
    events = [event async for event in handle.events()]
    assert events[-1].terminal
    assert await handle.status() == "cancelled"
    assert pulse.idle_seconds(began) < 5
