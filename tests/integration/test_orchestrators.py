"""Orchestrators of one's own: asked before each step of a task's route and after each result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from llama_deploy import Client, SimpleOrchestrator
from llama_deploy.client import Session
from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.dispatch import router
from llama_deploy.errors import ServiceNotFoundError, TaskCancelledError, TaskFailedError
from llama_deploy.message_queues import LocalMessageQueue
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.orchestrators import BaseOrchestrator
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import SessionPolicy, TaskDefinition, TaskResult, TaskStatus

State = dict[str, Any]


class Said(Event):
    text: str


class Append(Workflow):
    """Appends its letter to the text."""

    def __init__(self, letter: str) -> None:
        super().__init__()
        self.letter = letter

    @step
    async def append(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Said(text=self.letter))
        if ev.get("fail_in", "") == self.letter:
            raise ValueError(f"{self.letter} cannot do this")
        await asyncio.sleep(ev.get("seconds", 0))
        return StopEvent(result=ev.get("text", "") + self.letter)


def next_task(service: str, task_def: TaskDefinition, **arguments: Any) -> QueueMessage:
    data = task_def.model_copy(update={"input": json.dumps(arguments), "agent_id": service})
    return QueueMessage(type=service, action=ActionTypes.NEW_TASK, data=data.model_dump())


class Chain(BaseOrchestrator):
    """Sends each task to the service that it names, and then through the rest of the alphabet up to `c`."""

    last = "c"

    def __init__(self) -> None:
        self.asked = 0

    async def get_next_messages(
        self, task_def: TaskDefinition, state: State
    ) -> tuple[list[QueueMessage], State]:
        self.asked += 1
        arguments = json.loads(task_def.input)
        done = state.get(f"done_{task_def.task_id}", [])
        if not done:
            service = task_def.agent_id or "a"
        elif done[-1][-1] < self.last:
            service = chr(ord(done[-1][-1]) + 1)
            arguments["text"] = done[-1]
        else:
            return [], {}
        return [next_task(service, task_def, **arguments)], {"asked_for": service}

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        done = [*state.get(f"done_{result.task_id}", []), result.result]
        return {f"done_{result.task_id}": done, "count": state.get("count", 0) + 1}


class System:
    """A control plane with an orchestrator, and the services `a`, `b` and `c`."""

    def __init__(self, server: ControlPlaneServer, client: Client) -> None:
        self.server = server
        self.client = client

    async def session(self, policy: SessionPolicy = SessionPolicy.ENQUEUE) -> Session:
        return await self.client.core.sessions.create(policy=policy)


@asynccontextmanager
async def system(
    folder: Path, orchestrator: BaseOrchestrator, *, services: str = "abc", **settings: Any
) -> AsyncIterator[System]:
    config = ControlPlaneConfig(
        port=0, state_store_uri=f"sqlite:///{folder}/state.db", lease_seconds=2, **settings
    )
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(await LocalMessageQueue.start())
        server = await stack.enter_async_context(
            ControlPlaneServer(queue, orchestrator=orchestrator, config=config)
        )
        for letter in services:
            service = WorkflowService(
                Append(letter),
                queue,
                WorkflowServiceConfig(host="127.0.0.1", port=0, service_name=letter),
                gateway=server.gateway(),
            )
            running = await service.launch_local()
            stack.push_async_callback(asyncio.wait, [running])
            stack.callback(running.cancel)
            await service.register_to_control_plane()
        client = await stack.enter_async_context(Client(server.config.url, timeout=20))
        yield System(server, client)


async def by_run(system: System, session: Session, **arguments: Any) -> str:
    return await session.run("a", **arguments)


async def by_submit(system: System, session: Session, **arguments: Any) -> str:
    task = await system.client.submit("a", session=session, **arguments)
    return str(await task.result())


async def by_create_task(system: System, session: Session, **arguments: Any) -> str:
    task_id = await session.create_task(TaskDefinition(input=json.dumps(arguments), agent_id="a"))
    return str(await system.client.task(task_id).result())


async def without_a_service(system: System, session: Session, **arguments: Any) -> str:
    task_id = await session.create_task(TaskDefinition(input=json.dumps(arguments)))
    return str(await system.client.task(task_id).result())


@pytest.mark.parametrize("submit", [by_run, by_submit, by_create_task, without_a_service])
async def test_a_task_goes_from_service_to_service(
    tmp_path: Path, submit: Callable[..., Awaitable[str]]
) -> None:
    async with system(tmp_path, Chain()) as running:
        session = await running.session()
        assert await submit(running, session, text=">") == ">abc"
        state = (await session.get_state()).state
        assert (state["count"], state["asked_for"]) == (3, "c")
        (task,) = await session.get_tasks()
        assert json.loads(task.input) == {"text": ">"}


async def test_the_stream_of_a_route_is_one_with_one_terminal_event(tmp_path: Path) -> None:
    async with system(tmp_path, Chain()) as running:
        task = await running.client.submit("a", text=">")
        events = [event async for event in task.events()]
        assert [event.data.get("text") for event in events if event.type == "Said"] == ["a", "b", "c"]
        assert [event.index for event in events] == list(range(len(events)))
        assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
        assert events[-1].data["result"] == ">abc"
        view = await task.info()
        assert (view.attempt, view.service_name) == (3, "c")


async def test_tasks_that_wait_for_their_turn_are_asked_about_when_they_start(tmp_path: Path) -> None:
    class Remembering(Chain):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            if f"done_{task_def.task_id}" in state:
                return [], {}
            return [next_task("a", task_def, text=str(state.get("count", 0)))], {}

    async with system(tmp_path, Remembering()) as running:
        session = await running.session()
        tasks = [await running.client.submit("a", session=session) for _ in range(4)]
        assert [await task.result() for task in tasks] == ["0a", "1a", "2a", "3a"]


async def test_parallel_tasks_of_a_session_lose_no_update_of_its_state(tmp_path: Path) -> None:
    async with system(tmp_path, Chain()) as running:
        session = await running.session(SessionPolicy.PARALLEL)

        async def change(n: int) -> None:
            await session.update_state({f"own_{n}": n})

        tasks = [await running.client.submit("a", session=session, text=str(n)) for n in range(8)]
        await asyncio.gather(*(change(n) for n in range(20)))
        results = await asyncio.gather(*(task.result() for task in tasks))
        assert results == [f"{n}abc" for n in range(8)]
        state = (await session.get_state()).state
        assert state["count"] == 24
        assert all(state[f"own_{n}"] == n for n in range(20))


class Broken(Chain):
    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    async def get_next_messages(
        self, task_def: TaskDefinition, state: State
    ) -> tuple[list[QueueMessage], State]:
        if self.method == "get_next_messages":
            raise KeyError("no such plan")
        return await super().get_next_messages(task_def, state)

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        if self.method == "add_result_to_state":
            raise KeyError("no such plan")
        if self.method == "state":
            return {"x": object()}
        return await super().add_result_to_state(result, state)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("get_next_messages", "Broken.*get_next_messages.*no such plan"),
        ("add_result_to_state", "Broken.*add_result_to_state.*no such plan"),
        ("state", "Broken.*state"),
    ],
)
async def test_an_error_of_the_orchestrator_fails_the_task_with_words(
    tmp_path: Path, method: str, words: str
) -> None:
    async with system(tmp_path, Broken(method)) as running:
        session = await running.session()
        with pytest.raises(TaskFailedError, match=words):
            await session.run("a")
        task = await running.client.submit("a", session=session)
        events = [event async for event in task.events()]
        assert [event.terminal for event in events].count(True) == 1


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "raised",
    [asyncio.CancelledError(), SystemExit(3), MuteError(), ValueError("half \ud83d")],
    ids=["CancelledError", "SystemExit", "MuteError", "half a character"],
)
async def test_whatever_an_orchestrator_raises_fails_its_task_only(
    tmp_path: Path, raised: BaseException
) -> None:
    class Raising(Chain):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            if json.loads(task_def.input).get("raises"):
                raise raised
            return await super().get_next_messages(task_def, state)

    async with system(tmp_path, Raising()) as running, asyncio.timeout(20):
        session = await running.session()
        with pytest.raises(TaskFailedError, match=f"get_next_messages.*{type(raised).__name__}"):
            await session.run("a", raises=True)
        assert await session.run("a") == "abc", "the session goes on"


@pytest.mark.parametrize(
    "message",
    [
        QueueMessage(type="human", action=ActionTypes.SEND_EVENT, data={"x": object()}),
        QueueMessage(type="half \ud83d", action=ActionTypes.SEND_EVENT),
        QueueMessage(type="half \ud83d", action=ActionTypes.NEW_TASK),
    ],
    ids=["data", "topic", "service"],
)
async def test_a_message_that_cannot_be_sent_fails_the_task_only(
    tmp_path: Path, message: QueueMessage
) -> None:
    class Sending(Chain):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            messages, changes = await super().get_next_messages(task_def, state)
            return [message, *messages] if json.loads(task_def.input).get("sends") else messages, changes

    async with system(tmp_path, Sending()) as running, asyncio.timeout(20):
        session = await running.session()
        with pytest.raises(TaskFailedError, match="get_next_messages"):
            await session.run("a", sends=True)
        assert await session.run("a") == "abc", "the session goes on"


async def test_a_service_that_does_not_exist_fails_the_task(tmp_path: Path) -> None:
    async with system(tmp_path, Chain(), services="a") as running:
        session = await running.session()
        with pytest.raises(TaskFailedError, match="'b'") as caught:
            await session.run("a")
        assert (caught.value.error_type or "").endswith("ServiceNotFoundError")


async def test_an_orchestrator_that_names_no_service_fails_the_task(tmp_path: Path) -> None:
    class Silent(Chain):
        async def get_next_messages(
            self,
            task_def: TaskDefinition,  # noqa: ARG002
            state: State,  # noqa: ARG002
        ) -> tuple[list[QueueMessage], State]:
            return [], {}

    async with system(tmp_path, Silent()) as running:
        with pytest.raises(TaskFailedError, match=r"Silent.*named no service"):
            await running.client.run("a")


async def test_a_failed_service_ends_the_route(tmp_path: Path) -> None:
    async with system(tmp_path, Chain()) as running:
        session = await running.session()
        with pytest.raises(TaskFailedError, match="b cannot do this"):
            await session.run("a", fail_in="b")
        assert (await session.get_state()).state["count"] == 2


async def test_a_route_can_go_on_after_a_failure(tmp_path: Path) -> None:
    class Persistent(Chain):
        continues_after_failure = True

        async def add_result_to_state(self, result: TaskResult, state: State) -> State:
            if result.status is TaskStatus.FAILED:
                result = result.model_copy(update={"result": "failed b"})
            return await super().add_result_to_state(result, state)

    async with system(tmp_path, Persistent()) as running:
        assert await (await running.session()).run("a", fail_in="b") == "failed bc"


async def test_a_route_can_be_cancelled(tmp_path: Path) -> None:
    async with system(tmp_path, Chain()) as running:
        task = await running.client.submit("a", seconds=60)

        async def runs() -> bool:
            return await task.status() is TaskStatus.RUNNING

        await eventually(runs)
        await task.cancel()
        with pytest.raises(TaskCancelledError):
            await task.result()


async def test_a_slow_orchestrator_delays_its_own_tasks_only(tmp_path: Path) -> None:
    class Slow(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()

        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            if "wait" in json.loads(task_def.input):
                await self.go.wait()
            return await super().get_next_messages(task_def, state)

    slow = Slow()
    async with system(tmp_path, slow) as running:
        waiting = await running.client.submit("a", wait=1)
        assert await running.client.run("a", text=">") == ">abc"
        assert await waiting.status() is TaskStatus.PENDING
        slow.go.set()
        assert await waiting.result() == "abc"


async def test_a_route_goes_on_after_a_restart(tmp_path: Path) -> None:
    class Stuck(Chain):
        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            if f"done_{task_def.task_id}" in state:
                await asyncio.Event().wait()
            return await super().get_next_messages(task_def, state)

    async with system(tmp_path, Stuck()) as running:
        session = await running.session()
        task = await running.client.submit("a", session=session, text=">")

        async def is_between() -> bool:
            return await task.status() is TaskStatus.PENDING

        await eventually(is_between)
    chain = Chain()
    async with system(tmp_path, chain) as running:
        assert await running.client.task(task.task_id).result() == ">abc"
        assert chain.asked == 3


async def test_several_messages_are_sent_one_after_the_other(tmp_path: Path) -> None:
    class Spreading(Chain):
        """Asks b and c at once, and joins their answers as 0.6 programs do."""

        async def get_next_messages(
            self, task_def: TaskDefinition, state: State
        ) -> tuple[list[QueueMessage], State]:
            if state.get("sent"):
                return [], state
            state["sent"] = True
            return [next_task(name, task_def, text=name) for name in "bc"], state

        async def add_result_to_state(self, result: TaskResult, state: State) -> State:
            state.setdefault("found", []).append(result.result)
            joined = result.model_copy(update={"result": "+".join(state["found"])})
            state[f"result_{result.task_id}"] = joined
            return state

    async with system(tmp_path, Spreading()) as running:
        assert await (await running.session()).run("a") == "bb+cc"


async def test_other_messages_are_published(tmp_path: Path) -> None:
    async with (
        system(tmp_path, SimpleOrchestrator(3, "human")) as running,
        await running.server.message_queue.subscribe("llama_deploy.human") as human,
    ):
        session = await running.session()
        assert await session.run("a", text=">") == ">a"
        async with asyncio.timeout(10):
            (delivery,) = await human.receive(1)
        await delivery.ack()
        assert delivery.message.action is ActionTypes.COMPLETED_TASK
        assert delivery.message.data["result"] == ">a"


async def test_a_subclass_of_the_simple_orchestrator_is_asked(tmp_path: Path) -> None:
    class Logging(SimpleOrchestrator):
        def __init__(self, max_retries: int, final_message_type: str | None) -> None:
            super().__init__(max_retries, final_message_type)
            self.results: list[str] = []

        async def add_result_to_state(self, result: TaskResult, state: State) -> State:
            self.results.append(result.result)
            return await super().add_result_to_state(result, state)

    orchestrator = Logging(2, None)
    assert (orchestrator.max_retries, orchestrator.max_attempts) == (2, 3)
    async with system(tmp_path, orchestrator) as running:
        assert await (await running.session()).run("a", text=">") == ">a"
        assert orchestrator.results == [">a"]


async def test_the_same_task_twice_is_one(tmp_path: Path) -> None:
    async with system(tmp_path, Chain()) as running:
        session = await running.session()
        definition = TaskDefinition(input='{"text": ">"}')
        for _ in range(2):
            assert await session.create_task(definition) == definition.task_id
            assert await running.client.task(definition.task_id).result() == ">abc"
        assert (await session.get_state()).state["count"] == 3


async def test_without_an_orchestrator_of_ones_own_an_unknown_service_is_refused_at_once(
    tmp_path: Path,
) -> None:
    async with system(tmp_path, SimpleOrchestrator()) as running:
        with pytest.raises(ServiceNotFoundError):
            await running.client.submit("nobody")


async def test_an_orchestrator_that_never_ends_a_task_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Chain):
        async def get_next_messages(
            self,
            task_def: TaskDefinition,
            state: State,  # noqa: ARG002
        ) -> tuple[list[QueueMessage], State]:
            return [next_task("a", task_def)], {}

    monkeypatch.setattr(router, "MAX_HOPS", 5)
    async with system(tmp_path, Endless()) as running:
        with pytest.raises(TaskFailedError, match="Endless has sent the task to 5 services"):
            await running.client.run("a")


class Hangs(Chain):
    """Hangs in a method if the task asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging = 0

    async def get_next_messages(
        self, task_def: TaskDefinition, state: State
    ) -> tuple[list[QueueMessage], State]:
        if json.loads(task_def.input).get("hangs"):
            await self.hang()
        return await super().get_next_messages(task_def, state)

    async def add_result_to_state(self, result: TaskResult, state: State) -> State:
        if str(result.result).startswith("later"):
            await self.hang()
        return await super().add_result_to_state(result, state)

    async def hang(self) -> None:
        self.hanging += 1
        await asyncio.Event().wait()


class Unstoppable(Hangs):
    """Ignores that it is cancelled, until `ended` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def hang(self) -> None:
        while not self.ended.is_set():
            with suppress(asyncio.CancelledError):
                await self.ended.wait()


@pytest.mark.parametrize(
    ("arguments", "method"),
    [({"hangs": True}, "get_next_messages"), ({"text": "later"}, "add_result_to_state")],
)
async def test_an_orchestrator_that_does_not_answer_fails_the_task_at_the_limit(
    tmp_path: Path, arguments: dict[str, Any], method: str
) -> None:
    async with system(tmp_path, Hangs(), orchestrator_timeout=0.3) as running:
        session = await running.session()
        task = await running.client.submit("a", session=session, **arguments)
        with pytest.raises(
            TaskFailedError, match=rf"Hangs\.{method} .* 0\.3 s.*orchestrator_timeout"
        ) as caught:
            await task.result()
        assert caught.value.error_type == "builtins.TimeoutError"
        assert await session.run("a", text=">") == ">abc"


async def test_a_call_that_cannot_be_cancelled_is_left_alone_at_the_limit(tmp_path: Path) -> None:
    orchestrator = Unstoppable()
    async with system(tmp_path, orchestrator, orchestrator_timeout=0.2) as running:
        task = await running.client.submit("a", hangs=True)
        with pytest.raises(TaskFailedError, match="has not returned"):
            await task.result()
        assert await running.client.run("a", text=">") == ">abc"
        orchestrator.ended.set()


async def test_hanging_calls_do_not_stop_the_routes_of_other_tasks(tmp_path: Path) -> None:
    orchestrator = Hangs()
    async with system(tmp_path, orchestrator) as running:
        hanging = await asyncio.gather(*(running.client.submit("a", hangs=True) for _ in range(150)))
        await eventually(lambda: orchestrator.hanging == len(hanging))
        assert await running.client.run("a", text=">") == ">abc"
        assert set(await asyncio.gather(*(task.status() for task in hanging))) == {TaskStatus.PENDING}


async def test_tasks_wait_their_turn_when_too_many_calls_hang(tmp_path: Path) -> None:
    async with system(tmp_path, Hangs(), orchestrator_timeout=0.3, max_orchestrator_calls=2) as running:
        hanging = [await running.client.submit("a", hangs=True) for _ in range(4)]
        assert await running.client.run("a", text=">") == ">abc"
        assert {await task.status() for task in hanging} == {TaskStatus.FAILED}
