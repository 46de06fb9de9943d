"""The clients against a real control plane, with services that speak the instances' protocol."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import BaseModel
from workflows.events import HumanResponseEvent

from llama_deploy.client import AsyncLlamaDeployClient, Client, LlamaDeployClient
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
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
)
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.types import (
    EventDefinition,
    ServiceDefinition,
    TaskDefinition,
    TaskFailure,
    TaskStatus,
)
from llama_deploy.types.instance_protocol import (
    AttemptOutcome,
    ClaimRequest,
    EventPayload,
    InboxEntry,
    TaskDispatch,
)


class Attempt:
    """What the work of a task sees of it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.events: list[EventPayload] = []
        self.inbox: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        """Events that were sent to the task; None asks for its end."""


class CancelledByClient(Exception):  # noqa: N818 - not an error
    """The work ends because it was asked to."""


Work: TypeAlias = Callable[[Attempt], Awaitable[Any]]


class Instance:
    """Claims the tasks of one service and does its work."""

    def __init__(self, server: ControlPlaneServer, name: str, work: Work) -> None:
        self._gateway = server.gateway()
        self._queue = server.message_queue
        self._topics = server.plane.topics
        self._name = name
        self._id = f"{name}-1"
        self._work = work
        self._attempts: dict[str, Attempt] = {}

    async def serve(self, ready: asyncio.Event) -> None:
        await self._gateway.register(
            ServiceDefinition(service_name=self._name, description="For tests.", instance_id=self._id)
        )
        async with (
            await self._queue.subscribe(self._topics.work(self._name)) as work,
            await self._queue.subscribe(self._topics.instance(self._name, self._id)) as own,
            asyncio.TaskGroup() as group,
        ):
            ready.set()
            group.create_task(self._hear(own))
            while True:
                for delivery in await work.receive(100):
                    dispatch = TaskDispatch.model_validate(delivery.message.data)
                    await delivery.ack()
                    group.create_task(self._run(dispatch))

    async def _hear(self, own: Subscription) -> None:
        while True:
            for delivery in await own.receive(100):
                message = delivery.message
                if message.action is ActionTypes.SEND_EVENT:
                    entry = InboxEntry.model_validate(message.data)
                    self._attempts[entry.task_id].inbox.put_nowait(json.loads(entry.event.event_obj_str))
                else:
                    self._attempts[message.data["task_id"]].inbox.put_nowait(None)
                await delivery.ack()

    async def _run(self, dispatch: TaskDispatch) -> None:
        attempt = self._attempts[dispatch.task_id] = Attempt(json.loads(dispatch.input))
        claim = await self._gateway.claim(
            ClaimRequest(task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self._id)
        )
        for entry in claim.inbox:
            attempt.inbox.put_nowait(json.loads(entry.event.event_obj_str))
        outcome = AttemptOutcome(
            task_id=dispatch.task_id,
            attempt=dispatch.attempt,
            token=claim.token,
            first=0,
            events=[],
            status=TaskStatus.SUCCEEDED,
        )
        try:
            outcome.value = await self._work(attempt)
            outcome.result = str(outcome.value)
            outcome.terminal_event = EventPayload(type="StopEvent", data={"result": outcome.value})
        except ValueError as exc:
            outcome.status = TaskStatus.FAILED
            outcome.error = TaskFailure(type="builtins.ValueError", message=str(exc), traceback="line 1")
        except CancelledByClient:
            outcome.status = TaskStatus.CANCELLED
        outcome.events = attempt.events
        message = QueueMessage(action=ActionTypes.COMPLETED_TASK, data=outcome.model_dump(mode="json"))
        await self._queue.publish(message, self._topics.control_plane)


async def add(attempt: Attempt) -> Any:
    return attempt.arguments["a"] + attempt.arguments["b"]


async def count(attempt: Attempt) -> Any:
    attempt.events = [EventPayload(type="Number", data={"n": n}) for n in range(attempt.arguments["to"])]
    return len(attempt.events)


async def fail(attempt: Attempt) -> Any:
    raise ValueError(attempt.arguments.get("why", "no reason"))


async def ask(attempt: Attempt) -> Any:
    event = await attempt.inbox.get()
    if event is None:
        raise CancelledByClient
    return event["value"]["text"]


async def repeat(attempt: Attempt) -> Any:
    return attempt.arguments


SERVICES: dict[str, Work] = {"adder": add, "counter": count, "failing": fail, "asker": ask, "mirror": repeat}


class Stack:
    """A control plane with all of `SERVICES`, that can be stopped and started again at its address."""

    def __init__(self, path: Path, queue: LocalMessageQueue) -> None:
        self._uri = f"sqlite:///{path}"
        self.queue = queue
        self._resources = AsyncExitStack()
        self.port = 0

    @property
    def config(self) -> ControlPlaneConfig:
        return ControlPlaneConfig(
            host="127.0.0.1", port=self.port, state_store_uri=self._uri, lease_seconds=60
        )

    async def start(self) -> None:
        server = self.server = ControlPlaneServer(self.queue, config=self.config)
        await self._resources.enter_async_context(server)
        self.port = server.config.port or 0
        instances = await asyncio.gather(*(self._serve(server, *service) for service in SERVICES.items()))
        self._resources.push_async_callback(self._cancel, instances)

    async def _serve(self, server: ControlPlaneServer, name: str, work: Work) -> asyncio.Task[None]:
        ready = asyncio.Event()
        instance = asyncio.create_task(Instance(server, name, work).serve(ready))
        await ready.wait()
        return instance

    @staticmethod
    async def _cancel(instances: list[asyncio.Task[None]]) -> None:
        for instance in instances:
            instance.cancel()
        await asyncio.wait(instances)

    async def stop(self) -> None:
        await self._resources.aclose()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    async with await LocalMessageQueue.start() as queue:
        started = Stack(tmp_path / "state.db", queue)
        await started.start()
        yield started
        await started.stop()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    async with Client(control_plane_url=stack.config.url, timeout=20) as opened:
        yield opened


class Sum(BaseModel):
    a: int
    b: int


class Answer(HumanResponseEvent):
    text: str


# -- the surface of 0.6


async def test_a_session_runs_tasks(client: Client) -> None:
    session = await client.core.sessions.create()
    assert await session.run("adder", a=3, b=4) == "7"
    task_id = await session.run_nowait("adder", a=1, b=1)
    assert await client.task(task_id).result() == 2
    result = await session.get_task_result(task_id)
    assert result is not None
    assert result.result == "2"
    assert task_id in [task.task_id for task in await session.get_tasks()]


async def test_a_task_definition_makes_one_task_however_often_it_is_sent(client: Client) -> None:
    session = await client.core.sessions.create()
    definition = TaskDefinition(input='{"a": 1, "b": 2}', agent_id="adder")
    assert await session.create_task(definition) == definition.task_id
    assert await session.create_task(definition) == definition.task_id
    assert await client.task(definition.task_id).result() == 3
    assert len(await session.get_tasks()) == 1


async def test_a_result_is_none_until_there_is_one(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("asker")
    assert await session.get_task_result(task_id) is None
    await session.send_event("asker", task_id, Answer(text="yes"))
    assert await client.task(task_id).result() == "yes"


async def test_an_encoded_event_is_sent_as_it_is(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("asker")
    event = EventDefinition(
        agent_id="asker", event_obj_str='{"qualified_name": "a.B", "value": {"text": "mine"}}'
    )
    await session.send_event_def(task_id, event)
    assert await client.task(task_id).result() == "mine"


async def test_a_result_stream_can_be_read_at_once_and_ends_with_the_result(client: Client) -> None:
    session = await client.core.sessions.create()
    task_id = await session.run_nowait("counter", to=3)
    found = [data async for data in session.get_task_result_stream(task_id)]
    assert found == [{"n": 0}, {"n": 1}, {"n": 2}, {"result": 3}]


async def test_sessions_are_listed_got_and_deleted(client: Client) -> None:
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


async def test_an_api_server_that_is_not_there_is_down() -> None:
    async with Client(api_server_url="http://127.0.0.1:1") as client:
        assert (await client.apiserver.status()).status == "Down"
        with pytest.raises(UnavailableError):
            await client.apiserver.deployments.list()


# -- the new surface


async def test_a_submitted_task_is_typed_all_the_way(client: Client) -> None:
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


async def test_run_is_submit_and_result(client: Client) -> None:
    assert await client.run("adder", a=3, b=4) == 7
    assert await client.run("mirror", a=3, b=4, as_type=Sum) == Sum(a=3, b=4)


async def test_tasks_share_a_session_that_is_named(client: Client) -> None:
    session = await client.core.sessions.create()
    by_session = await client.submit("adder", session=session, a=1, b=1)
    by_id = await client.submit("adder", session=session.id, a=1, b=1)
    on_its_own = await client.submit("adder", a=1, b=1)
    assert by_session.session_id == by_id.session_id == session.id != on_its_own.session_id


async def test_arguments_may_be_called_like_parameters(client: Client) -> None:
    given = {"session": 1, "task_id": 2, "max_attempts": 3, "service_name": 4}
    assert await client.run("mirror", arguments=given, other=5) == {**given, "other": 5}


async def test_a_task_id_makes_submitting_idempotent(client: Client) -> None:
    first = await client.submit("adder", task_id="once", a=1, b=1)
    assert await first.result() == 2
    again = await client.submit("adder", task_id="once", a=1, b=1)
    assert await again.result() == 2
    assert again.session_id == first.session_id


async def test_events_come_once_in_order_from_any_cursor(client: Client) -> None:
    handle = await client.submit("counter", to=1000)
    events = [event async for event in handle.events()]
    assert [event.index for event in events] == list(range(1001))
    assert [event.data["n"] for event in events[:-1]] == list(range(1000))
    assert [event.terminal for event in events] == [False] * 1000 + [True]
    assert [event.index async for event in client.task(handle.task_id).events(after=997)] == [998, 999, 1000]


async def test_an_event_of_the_same_key_reaches_the_task_once(client: Client, stack: Stack) -> None:
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
    sent = await stack.server.plane._store.read(lambda tx: tx.inbox.load([handle.task_id]))
    assert [entry.seq for entry in sent] == [1]


async def test_leaving_a_stream_early_is_fine(client: Client) -> None:
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


async def test_a_session_has_the_policy_asked_for(client: Client) -> None:
    session = await client.core.sessions.create(policy="reject")
    await session.run_nowait("asker")
    with pytest.raises(SessionBusyError):
        await session.run_nowait("adder", a=1, b=1)


# -- errors


async def test_a_failed_task_raises_with_its_facts(client: Client) -> None:
    session = await client.core.sessions.create()
    with pytest.raises(TaskFailedError, match="the reason") as caught:
        await session.run("failing", why="the reason")
    assert caught.value.error_type == "builtins.ValueError"
    assert caught.value.error_message == "the reason"
    assert caught.value.traceback == "line 1"
    with pytest.raises(TaskFailedError):
        await (await client.submit("failing")).result()


async def test_an_unknown_service_raises_at_once(client: Client) -> None:
    session = await client.core.sessions.create()
    for refused in (session.run("nobody"), session.run_nowait("nobody"), client.submit("nobody")):
        with pytest.raises(ServiceNotFoundError, match="nobody"):
            await refused


async def test_unknown_tasks_raise(client: Client) -> None:
    handle = client.task("nothing")
    for refused in (handle.result(), handle.info(), handle.cancel(), handle.send(Answer(text="x"))):
        with pytest.raises(TaskNotFoundError):
            await refused
    with pytest.raises(TaskNotFoundError):
        await anext(handle.events())


async def test_a_late_result_is_a_timeout_and_the_task_goes_on(client: Client) -> None:
    handle = await client.submit("asker")
    with pytest.raises(TaskTimeoutError, match=r"running|queued"):
        await handle.result(timeout=0.2)
    client.timeout = 0.2
    session = await client.core.sessions.create()
    with pytest.raises(TaskTimeoutError):
        await session.run("asker")
    await handle.send(Answer(text="at last"))
    assert await handle.result(timeout=20) == "at last"


async def test_arguments_that_are_not_json_are_refused_before_they_are_sent(client: Client) -> None:
    with pytest.raises(SerializationError, match=r"\$\.a"):
        await client.submit("adder", a=object())
    with pytest.raises(InvalidRequestError):
        await client.submit("adder", arguments={"a": 1}, a=1)


async def test_no_control_plane_is_unavailable() -> None:
    async with Client(control_plane_url="http://127.0.0.1:1", timeout=0.3) as client:
        with pytest.raises(UnavailableError):
            await client.core.sessions.create()
        with pytest.raises(UnavailableError):
            await client.submit("adder", a=1, b=1)


# -- a control plane that goes and comes back


async def test_submissions_results_and_streams_outlive_a_restart(stack: Stack, client: Client) -> None:
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


async def test_a_stream_goes_on_behind_the_last_event_after_a_restart(stack: Stack, client: Client) -> None:
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


async def test_the_sync_client_does_the_same_from_a_running_loop_and_many_threads(client: Client) -> None:
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


async def test_the_sync_surface_of_0_6(client: Client) -> None:
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


async def test_the_clients_of_0_5_still_work(stack: Stack) -> None:
    with pytest.warns(DeprecationWarning, match="Client"):
        old = AsyncLlamaDeployClient(stack.config, timeout=20)
    session = await old.get_or_create_session("mine")
    assert session.session_id == "mine"
    assert await session.run("adder", a=3, b=4) == "7"
    task = await session.get_current_task()
    assert task is not None
    assert task.agent_id == "adder"
    assert [found.session_id for found in await old.list_sessions()] == ["mine"]
    assert (await old.get_service("adder")).service_name == "adder"
    await old.delete_session("mine")
    await old.close()

    def use() -> None:
        with pytest.warns(DeprecationWarning, match="Client"):
            old = LlamaDeployClient(stack.config, timeout=20)
        session = old.create_session()
        assert session.run("adder", a=3, b=4) == "7"
        assert old.get_session(session.session_id).id == session.id
        old.register_service(ServiceDefinition(service_name="mine"))
        assert "mine" in [service.service_name for service in old.list_services()]
        old.deregister_service("mine")
        old.close()

    await asyncio.to_thread(use)
