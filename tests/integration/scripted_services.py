"""A control plane with services that speak the instances' protocol and run plain functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.message_queues.base import Subscription
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.types import ServiceDefinition, TaskFailure, TaskStatus
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
            group.create_task(self._listen(own))
            while True:
                for delivery in await work.receive(100):
                    dispatch = TaskDispatch.model_validate(delivery.message.data)
                    await delivery.ack()
                    group.create_task(self._run(dispatch))

    async def _listen(self, own: Subscription) -> None:
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
        attempt = self._attempts[dispatch.task_id] = Attempt({})
        claim = await self._gateway.claim(
            ClaimRequest(task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self._id)
        )
        attempt.arguments = json.loads(claim.input)
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
        self.store = await self._resources.enter_async_context(await open_state_store(self._uri))
        server = self.server = ControlPlaneServer(self.queue, state_store=self.store, config=self.config)
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


@asynccontextmanager
async def running_stack(folder: Path) -> AsyncIterator[Stack]:
    """Run a stack that keeps its state in `folder`."""
    async with await LocalMessageQueue.start() as queue:
        stack = Stack(folder / "state.db", queue)
        await stack.start()
        yield stack
        await stack.stop()
