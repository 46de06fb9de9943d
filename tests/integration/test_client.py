"""The clients against a real control plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from workflows.events import HumanResponseEvent

from llama_deploy.client import Client
from llama_deploy.errors import (
    InvalidRequestError,
    SerializationError,
    ServiceNotFoundError,
    SessionBusyError,
    SessionNotFoundError,
    StateConflictError,
    TaskCancelledError,
    TaskFailedError,
    TaskFinishedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnavailableError,
    WrongServerError,
)
from llama_deploy.message_queues import SimpleMessageQueueConfig, SimpleMessageQueueServer
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import EventDefinition, ServiceDefinition, TaskDefinition, TaskStatus
from llama_deploy.types.instance_protocol import ClaimRequest
from tests.integration.scripted_services import SERVICES, Stack, running_stack


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path) as started:
        yield started


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(control_plane_url=stack.config.url, timeout=20) as opened:
        yield opened


class Sum(BaseModel):
    a: int
    b: int


class Answer(HumanResponseEvent):
    text: str


# -- core: sessions and services


async def test_a_session_runs_tasks(client: Client) -> None:
    session = await client.core.sessions.create()
    assert await session.run("adder", a=3, b=4) == "7"
    task_id = await session.run_nowait("adder", a=1, b=1)
    assert await client.task(task_id).result() == 2
    result = await session.get_task_result(task_id)
    assert result is not None
    assert result.result == "2"
    assert task_id in [task.task_id for task in await session.get_tasks()]


async def test_submitting_a_task_definition_is_idempotent(client: Client) -> None:
    session = await client.core.sessions.create()
    definition = TaskDefinition(input='{"a": 1, "b": 2}', agent_id="adder")
    assert await session.create_task(definition) == definition.task_id
    assert await session.create_task(definition) == definition.task_id
    assert await client.task(definition.task_id).result() == 3
    assert len(await session.get_tasks()) == 1


async def test_a_result_is_none_while_the_task_runs(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("asker")
    assert await session.get_task_result(task_id) is None
    await session.send_event("asker", task_id, Answer(text="yes"))
    assert await client.task(task_id).result() == "yes"


async def test_an_encoded_event_is_sent_unchanged(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("asker")
    event = EventDefinition(
        agent_id="asker", event_obj_str='{"qualified_name": "a.B", "value": {"text": "mine"}}'
    )
    await session.send_event_def(task_id, event)
    assert await client.task(task_id).result() == "mine"


async def test_a_result_stream_ends_with_the_result(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("counter", to=3)
    found = [data async for data in session.get_task_result_stream(task_id)]
    assert found == [{"n": 0}, {"n": 1}, {"n": 2}, {"result": 3}]


async def test_sessions_are_created_listed_and_deleted(client: Client) -> None:
    sessions = client.core.sessions
    one, two = await sessions.create(), await sessions.get_or_create("mine")
    assert two.id == "mine"
    assert (await sessions.get_or_create("mine")).id == "mine"
    assert (await sessions.get("mine")).id == "mine"
    assert [session.id for session in await sessions.list()] == sorted([one.id, "mine"])
    await sessions.delete("mine")
    with pytest.raises(SessionNotFoundError):
        await sessions.get("mine")
    with pytest.raises(SessionNotFoundError):
        await two.run("adder", a=1, b=1)


async def test_services_are_registered_listed_and_deregistered(client: Client) -> None:
    services = client.core.services
    assert services.items == {}
    await services.register(ServiceDefinition(service_name="mine", description="Mine.", host="h", port=1))
    assert [service.id for service in await services.list()] == sorted([*SERVICES, "mine"])
    assert services.items["mine"].description == "Mine."
    assert len(services.items["adder"].instances) == 1
    await services.deregister("mine")
    assert "mine" not in [service.id for service in await services.list()]


async def test_an_unreachable_api_server_is_down() -> None:
    async with Client(api_server_url="http://127.0.0.1:1", timeout=0.3) as client:
        assert (await client.apiserver.status()).status == "Down"
        with pytest.raises(UnavailableError):
            await client.apiserver.deployments.list()


# -- tasks


async def test_the_result_of_a_task_has_the_requested_type(client: Client) -> None:
    handle = await client.submit("mirror", a=3, b=4)
    assert await handle.result() == {"a": 3, "b": 4}
    assert await handle.result(as_type=Sum) == Sum(a=3, b=4)
    assert await handle.status() is TaskStatus.SUCCEEDED
    info = await handle.info()
    assert (info.task_id, info.session_id, info.service_name) == (
        handle.task_id,
        handle.session_id,
        "mirror",
    )
    with pytest.raises(SerializationError):
        await handle.result(as_type=int)


async def test_run_returns_the_result(client: Client) -> None:
    assert await client.run("adder", a=3, b=4) == 7
    assert await client.run("mirror", a=3, b=4, as_type=Sum) == Sum(a=3, b=4)


async def test_tasks_can_share_a_session(client: Client) -> None:
    session = await client.core.sessions.create()
    by_session = await client.submit("adder", session=session, a=1, b=1)
    by_id = await client.submit("adder", session=session.id, a=1, b=1)
    on_its_own = await client.submit("adder", a=1, b=1)
    assert by_session.session_id == by_id.session_id == session.id != on_its_own.session_id


async def test_arguments_may_have_the_names_of_parameters(client: Client) -> None:
    given = {"session": 1, "task_id": 2, "max_attempts": 3, "service_name": 4}
    assert await client.run("mirror", arguments=given, other=5) == {**given, "other": 5}


async def test_a_task_id_makes_submitting_idempotent(client: Client) -> None:
    first = await client.submit("adder", task_id="once", a=1, b=1)
    assert await first.result() == 2
    again = await client.submit("adder", task_id="once", a=1, b=1)
    assert await again.result() == 2
    assert again.session_id == first.session_id


async def test_each_event_arrives_once_and_in_order_from_any_cursor(client: Client) -> None:
    handle = await client.submit("counter", to=1000)
    events = [event async for event in handle.events()]
    assert [event.index for event in events] == list(range(1001))
    assert [event.data["n"] for event in events[:-1]] == list(range(1000))
    assert [event.terminal for event in events] == [False] * 1000 + [True]
    assert [event.index async for event in client.task(handle.task_id).events(after=997)] == [998, 999, 1000]


async def test_a_task_gets_one_event_per_idempotency_key(client: Client, stack: Stack) -> None:
    handle = await client.submit("asker")
    for _ in range(2):
        await handle.send(Answer(text="yes"), idempotency_key="mine")
    assert await handle.result() == "yes"
    await handle.send(Answer(text="yes"), idempotency_key="mine")
    await asyncio.to_thread(
        lambda: client.sync.task(handle.task_id).send(Answer(text="yes"), idempotency_key="mine")
    )
    with pytest.raises(InvalidRequestError, match="idempotency_key"):
        await handle.send(Answer(text="yes"), idempotency_key="")
    sent = await stack.store.read(lambda tx: tx.inbox.load([handle.task_id]))
    assert [entry.seq for entry in sent] == [1]


async def test_a_stream_can_be_abandoned(client: Client) -> None:
    handle = await client.submit("counter", to=1000)
    async for event in handle.events():
        assert event.index == 0
        break
    assert await handle.result() == 1000


async def test_an_event_reaches_the_task(client: Client) -> None:
    handle = await client.submit("asker")
    await handle.send(Answer(text="forty-two"))
    assert await handle.result() == "forty-two"
    with pytest.raises(TaskFinishedError):
        await handle.send(Answer(text="too late"))


async def test_a_task_is_cancelled(client: Client) -> None:
    handle = await client.submit("asker")
    await handle.cancel()
    with pytest.raises(TaskCancelledError):
        await handle.result()
    assert await handle.status() is TaskStatus.CANCELLED
    assert [event.terminal async for event in handle.events()] == [True]


async def test_session_state_is_merged_and_compared(client: Client) -> None:
    session = await client.core.sessions.create()
    assert (await session.get_state()).state == {}
    merged = await session.update_state({"a": 1})
    merged = await session.update_state({"b": 2})
    assert merged.state == {"a": 1, "b": 2}
    assert await session.get_state() == merged
    replaced = await session.set_state({"c": 3}, version=merged.version)
    assert replaced.state == {"c": 3}
    with pytest.raises(StateConflictError) as caught:
        await session.set_state({"d": 4}, version=merged.version)
    assert (caught.value.expected, caught.value.actual) == (merged.version, replaced.version)


async def test_a_session_has_the_requested_policy(client: Client) -> None:
    session = await client.core.sessions.create(policy="reject")
    await session.run_nowait("asker")
    with pytest.raises(SessionBusyError):
        await session.run_nowait("adder", a=1, b=1)


# -- errors


async def test_a_failed_task_raises_with_its_error(client: Client) -> None:
    session = await client.core.sessions.create()
    with pytest.raises(TaskFailedError, match="the reason") as caught:
        await session.run("failing", why="the reason")
    assert caught.value.error_type == "builtins.ValueError"
    assert caught.value.error_message == "the reason"
    assert caught.value.traceback == "line 1"
    with pytest.raises(TaskFailedError):
        await (await client.submit("failing")).result()


async def test_an_unknown_service_raises_immediately(client: Client) -> None:
    session = await client.core.sessions.create()
    for call in (session.run("nobody"), session.run_nowait("nobody"), client.submit("nobody")):
        with pytest.raises(ServiceNotFoundError, match="nobody"):
            await call


async def test_unknown_tasks_raise(client: Client) -> None:
    handle = client.task("nothing")
    for call in (handle.result(), handle.info(), handle.cancel(), handle.send(Answer(text="x"))):
        with pytest.raises(TaskNotFoundError):
            await call
    with pytest.raises(TaskNotFoundError):
        await anext(handle.events())


async def test_a_timeout_does_not_stop_the_task(client: Client) -> None:
    handle = await client.submit("asker")
    with pytest.raises(TaskTimeoutError, match=r"running|queued"):
        await handle.result(timeout=0.2)
    client.timeout = 0.2
    session = await client.core.sessions.create()
    with pytest.raises(TaskTimeoutError):
        await session.run("asker")
    await handle.send(Answer(text="at last"))
    assert await handle.result(timeout=20) == "at last"


async def test_arguments_that_are_not_json_raise_before_they_are_sent(client: Client) -> None:
    with pytest.raises(SerializationError, match=r"\$\.a"):
        await client.submit("adder", a=object())
    with pytest.raises(InvalidRequestError):
        await client.submit("adder", arguments={"a": 1}, a=1)


async def test_an_unreachable_control_plane_is_unavailable() -> None:
    async with Client(control_plane_url="http://127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises(UnavailableError):
            await client.core.sessions.create()
        with pytest.raises(UnavailableError):
            await client.submit("adder", a=1, b=1)


async def test_the_url_of_the_message_queue_is_told_from_that_of_the_control_plane() -> None:
    async with (
        SimpleMessageQueueServer(SimpleMessageQueueConfig(port=0)) as queue,
        Client(queue.config.base_url, timeout=5) as client,
    ):
        for call in (
            client.core.services.list,
            client.core.sessions.create,
            client.core.sessions.list,
            client.task("t1").info,
            client.task("t1").result,
            client.task("t1").cancel,
            lambda: client.submit("adder"),
            lambda: client.run("adder"),
            lambda: anext(client.task("t1").events()),
        ):
            with pytest.raises(WrongServerError, match="this is the message queue, not the control plane"):
                await call()


# -- a control plane that restarts


async def test_submissions_results_and_streams_survive_a_restart(stack: Stack, client: Client) -> None:
    await client.core.services.register(ServiceDefinition(service_name="later"))
    waiting = await client.submit("later")
    stream = waiting.events()
    first = asyncio.create_task(anext(stream))
    result = asyncio.create_task(waiting.result())
    await stack.stop()
    submitted = asyncio.create_task(client.run("adder", a=3, b=4))
    await stack.start()
    assert await submitted == 7
    await waiting.cancel()
    with pytest.raises(TaskCancelledError):
        await result
    assert (await first).terminal


async def test_a_session_with_open_tasks_is_deleted_only_on_request(client: Client) -> None:
    sessions = client.core.sessions
    session = await sessions.create()
    await client.core.services.register(ServiceDefinition(service_name="later"))
    tasks = [await client.submit("later", session=session) for _ in range(3)]
    with pytest.raises(SessionBusyError, match=rf"session {session.id} has 3 open tasks; wait .*cancel=True"):
        await sessions.delete(session.id)
    assert (await tasks[2].info()).status is TaskStatus.PENDING
    await sessions.delete(session.id, cancel=True)
    with pytest.raises(TaskNotFoundError):
        await tasks[0].info()


@pytest.mark.parametrize("kind", ["asyncio", "threads"])
async def test_many_calls_survive_a_restart_with_one_line_in_the_log(
    stack: Stack, client: Client, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await client.core.services.register(ServiceDefinition(service_name="later"))
    tasks = [await client.submit("later") for _ in range(8)]
    await stack.stop()
    with ThreadPoolExecutor(32) as threads:

        def call(name: str, task_id: str) -> Awaitable[Any]:
            if kind == "asyncio":
                return asyncio.create_task(getattr(client.task(task_id), name)())
            method = getattr(client.sync.task(task_id), name)
            return asyncio.get_running_loop().run_in_executor(threads, method)

        calls = [call(name, each.task_id) for each in tasks for name in ("info", "cancel", "status")]
        lost = f"the control plane {stack.config.url} does not answer; retrying: "
        await eventually(lambda: lost in caplog.text)
        await stack.start()
        answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert [answer.status for answer in answers[1::3]] == [TaskStatus.CANCELLED] * 8
    warnings = [record.message for record in caplog.records if record.name.endswith("server_outage")]
    assert len(warnings) == 2
    assert warnings[0].startswith(lost)
    assert warnings[1] == f"the control plane {stack.config.url} answers again"


async def test_a_stream_resumes_after_the_last_event_after_a_restart(stack: Stack, client: Client) -> None:
    service = ServiceDefinition(service_name="later", instance_id="later-1")
    await stack.server.gateway().register(service)
    handle = await client.submit("later")
    claim = await stack.server.gateway().claim(
        ClaimRequest(task_id=handle.task_id, attempt=1, instance_id="later-1")
    )

    async def report(kind: ActionTypes, first: int, **more: Any) -> None:
        sent = {"task_id": handle.task_id, "attempt": 1, "token": claim.token, "first": first, **more}
        await stack.queue.publish(
            QueueMessage(action=kind, data=sent), stack.server.plane.topics.control_plane
        )

    events = [{"type": "Number", "data": {"n": n}} for n in range(4)]
    stream = handle.events()
    await report(ActionTypes.TASK_STREAM, 0, events=events[:2])
    found = [await anext(stream), await anext(stream)]
    await stack.stop()
    await stack.start()
    await report(ActionTypes.COMPLETED_TASK, 2, events=events[2:], status="succeeded", value=1)
    found += [event async for event in stream]
    assert [event.index for event in found] == [0, 1, 2, 3, 4]
    assert [event.data.get("n") for event in found[:-1]] == [0, 1, 2, 3]


# -- without await


async def test_the_sync_client_works_in_many_threads(client: Client) -> None:
    def work(number: int) -> int:
        handle = client.sync.submit("adder", a=number, b=1)
        events = list(handle.events())
        assert [event.terminal for event in events] == [True]
        assert handle.result() == number + 1
        assert client.sync.run("mirror", a=1, b=2, as_type=Sum) == Sum(a=1, b=2)
        return int(client.sync.core.sessions.create().run("adder", a=number, b=1))

    with ThreadPoolExecutor(16) as threads:
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(loop.run_in_executor(threads, work, n) for n in range(64)))
    assert found == [n + 1 for n in range(64)]


async def test_the_sync_client_has_core(client: Client) -> None:
    def use() -> None:
        core = client.sync.core
        session = core.sessions.get_or_create("mine")
        assert session.run("adder", a=3, b=4) == "7"
        task_id = session.run_nowait("counter", to=2)
        assert session.get_task_result_stream(task_id) == [{"n": 0}, {"n": 1}, {"result": 2}]
        asking = session.run_nowait("asker")
        session.send_event("asker", asking, Answer(text="yes"))
        assert client.sync.task(asking).result() == "yes"
        assert session.update_state({"a": 1}).state == session.get_state().state
        assert [service.id for service in core.services.list()] == sorted(SERVICES)
        with pytest.raises(TaskFailedError):
            session.run("failing")
        with pytest.raises(TaskTimeoutError):
            client.sync.submit("asker").result(timeout=0.1)

    await asyncio.to_thread(use)
