"""A queue, a control plane and workflow services in one process, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from workflows.events import Event

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.http.control_plane_server import ControlPlaneServer
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.message_queues.simple import LocalMessageQueue
from llama_deploy.services import AnyWorkflow, WorkflowService, WorkflowServiceConfig
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.records import SessionRecord
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import (
    EventDefinition,
    SessionOptions,
    SessionPolicy,
    TaskEvent,
    TaskStatus,
    TaskSubmission,
    TaskView,
)
from llama_deploy.types.instance_protocol import Heartbeat, HeartbeatReply

LEASE: Final = 1.5
PATIENCE: Final = 60.0


@asynccontextmanager
async def running_stack(
    connect: Callable[[], Awaitable[AbstractMessageQueue]] = LocalMessageQueue.start,
    *,
    lease_seconds: float = LEASE,
    store_uri: str = "sqlite:///:memory:",
    **settings: Any,
) -> AsyncIterator[Stack]:
    """Run a control plane over a queue and a store, with further settings of `ControlPlaneConfig`."""
    async with (
        await connect() as queue,
        await open_state_store(store_uri) as store,
        ControlPlaneServer(
            queue,
            state_store=store,
            config=ControlPlaneConfig(port=0, lease_seconds=lease_seconds, **settings),
        ) as server,
    ):
        yield Stack(queue, store, server)


class ListeningGateway(DirectGateway):
    """Keeps the heartbeats of an instance."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self.beats: list[Heartbeat] = []

    def beat(self, heartbeat: Heartbeat) -> HeartbeatReply:
        self.beats.append(heartbeat)
        return super().beat(heartbeat)


def beats_of(service: WorkflowService) -> list[Heartbeat]:
    """Return the heartbeats of a service that `Stack.service` has made."""
    assert isinstance(service.gateway, ListeningGateway)
    return service.gateway.beats


class Stack:
    """A queue, a control plane and services in this process."""

    def __init__(self, queue: AbstractMessageQueue, store: StateStore, server: ControlPlaneServer) -> None:
        self.queue = queue
        self.store = store
        self.server = server
        self.plane = server.plane

    def service(self, workflow: AnyWorkflow, name: str = "service", **settings: Any) -> WorkflowService:
        config = WorkflowServiceConfig(
            host="127.0.0.1", port=0, service_name=name, **{"drain_timeout": 2.0, **settings}
        )
        return WorkflowService(workflow, self.queue, config, gateway=ListeningGateway(self.plane))

    @asynccontextmanager
    async def serving(self, service: WorkflowService) -> AsyncIterator[asyncio.Task[None]]:
        await service.register_to_control_plane()
        task = await service.launch_local()
        try:
            yield task
        finally:
            await stop(task)

    async def submit(
        self,
        name: str = "service",
        session_id: str | None = None,
        /,
        *,
        session_policy: SessionPolicy | None = None,
        **arguments: Any,
    ) -> str:
        submission = TaskSubmission(
            service_name=name, arguments=arguments, session_id=session_id, session_policy=session_policy
        )
        return (await self.plane.tasks.submit(submission)).task_id

    async def end(self, task_id: str, *, wait: float = PATIENCE) -> TaskView:
        return await self.plane.tasks.get(task_id, wait=wait)

    async def run(
        self, name: str = "service", session_id: str | None = None, /, **arguments: Any
    ) -> TaskView:
        return await self.end(await self.submit(name, session_id, **arguments))

    async def events(self, task_id: str) -> list[TaskEvent]:
        pages = [page async for page in await self.plane.tasks.events(task_id)]
        return [
            TaskEvent(index=item.position, type=item.type, data=json.loads(item.data), terminal=item.terminal)
            for page in pages
            for item in page
        ]

    async def session(self, policy: SessionPolicy = SessionPolicy.ENQUEUE) -> str:
        return await self.plane.sessions.create(SessionOptions(policy=policy))

    async def stored(self, session_id: str) -> SessionRecord:
        """Return a session with the keys of the services in its state."""
        return (await self.store.read(lambda tx: tx.sessions.load([session_id])))[session_id]

    async def is_parked(self, task_id: str) -> bool:
        """Whether a task waits without an instance. One that waits in memory is shown as `waiting`, too."""
        task = (await self.store.read(lambda tx: tx.tasks.load([task_id])))[task_id]
        return task.status is TaskStatus.WAITING

    async def send(self, task_id: str, event: Event) -> None:
        wire = {
            "__is_pydantic": True,
            "value": event.model_dump(mode="json"),
            "qualified_name": f"{type(event).__module__}.{type(event).__name__}",
        }
        await self.plane.tasks.send_event(task_id, EventDefinition(event_obj_str=json.dumps(wire)))


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until `condition` holds."""
    await eventually(condition, seconds=PATIENCE)


def result_of(view: TaskView) -> Any:
    assert view.result is not None, view
    assert view.status is TaskStatus.SUCCEEDED, view.result.error
    return view.result.value


def failure_of(view: TaskView) -> tuple[str, str]:
    assert view.result is not None, view
    assert view.result.error is not None, view
    return view.result.error.type, view.result.error.message
