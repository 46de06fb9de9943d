"""A control plane with a real queue and a real store, and an instance played by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.message_queues import (
    LocalMessageQueue,
)
from llama_deploy.message_queues.base import Subscription
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.state_stores.base import StateStore
from llama_deploy.state_stores.store_registry import open_state_store
from llama_deploy.testing.tcp_proxy import TcpProxy
from llama_deploy.types import (
    ServiceDefinition,
)
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    ClaimReply,
    ClaimRequest,
    EventPayload,
    Heartbeat,
    HeldAttempt,
    TaskDispatch,
)
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest

CONTROL = "llama_deploy.control_plane"


class Instance:
    """Plays one instance of the service `echo`, at the level of the protocol."""

    def __init__(
        self, server: ControlPlaneServer, queue: LocalMessageQueue, work: Subscription, name: str
    ) -> None:
        self.server = server
        self.queue = queue
        self.work = work
        self.name = name
        self.token = ""

    async def next_dispatch(self) -> TaskDispatch:
        async with asyncio.timeout(10):
            (delivery,) = await self.work.receive(1)
        await delivery.ack()
        assert delivery.message.action is ActionTypes.NEW_TASK
        return TaskDispatch.model_validate(delivery.message.data)

    def claim_request(self, dispatch: TaskDispatch) -> ClaimRequest:
        return ClaimRequest(task_id=dispatch.task_id, attempt=dispatch.attempt, instance_id=self.name)

    async def claim(self, dispatch: TaskDispatch) -> ClaimReply:
        (reply,) = await self.server.plane.attempts.claim([self.claim_request(dispatch)])
        self.token = reply.token
        return reply

    async def stream(self, dispatch: TaskDispatch, *, first: int, numbers: range) -> None:
        await self.report(ActionTypes.TASK_STREAM, AttemptEvents(**self.events(dispatch, first, numbers)))

    async def finish(self, dispatch: TaskDispatch, *, first: int = 0, **outcome: Any) -> None:
        events = self.events(dispatch, first, range(0))
        fields = {"status": "succeeded", "result": "done", "value": "done", **outcome}
        await self.report(ActionTypes.COMPLETED_TASK, AttemptOutcome(**events, **fields))

    def events(self, dispatch: TaskDispatch, first: int, numbers: range) -> dict[str, Any]:
        return {
            "task_id": dispatch.task_id,
            "attempt": dispatch.attempt,
            "token": self.token,
            "first": first,
            "events": [EventPayload(type="Number", data={"n": n}) for n in numbers],
        }

    async def report(self, action: ActionTypes, data: AttemptEvents) -> None:
        await self.queue.publish(QueueMessage(action=action, data=data.model_dump(mode="json")), CONTROL)

    async def run_one(self, **outcome: Any) -> TaskDispatch:
        dispatch = await self.next_dispatch()
        assert (await self.claim(dispatch)).granted
        await self.finish(dispatch, **outcome)
        return dispatch


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    async with TcpProxy() as proxy:
        yield proxy


@pytest.fixture
async def queue() -> AsyncIterator[LocalMessageQueue]:
    async with await LocalMessageQueue.start() as queue:
        yield queue


@pytest.fixture
def lease_seconds() -> float:
    """Longer than a test; those about leases parametrize it."""
    return 60.0


@pytest.fixture
def redispatch_seconds() -> float:
    """Longer than a test; those about repeated messages parametrize it."""
    return 60.0


@pytest.fixture
def config(tmp_path: Path, lease_seconds: float, redispatch_seconds: float) -> ControlPlaneConfig:
    return ControlPlaneConfig(
        port=0,
        state_store_uri=f"sqlite:///{tmp_path}/state.db",
        lease_seconds=lease_seconds,
        redispatch_seconds=redispatch_seconds,
    )


@pytest.fixture
async def store(config: ControlPlaneConfig) -> AsyncIterator[StateStore]:
    """What the control plane of `server` stores its state in."""
    async with await open_state_store(config.store_uri) as store:
        yield store


@pytest.fixture
async def server(
    queue: LocalMessageQueue, store: StateStore, config: ControlPlaneConfig
) -> AsyncIterator[ControlPlaneServer]:
    async with ControlPlaneServer(queue, state_store=store, config=config) as server:
        yield server


@pytest.fixture
async def instance(server: ControlPlaneServer, queue: LocalMessageQueue) -> AsyncIterator[Instance]:
    await server.plane.services.register(ServiceDefinition(service_name="echo", instance_id="one"))
    async with await queue.subscribe("llama_deploy.echo") as work:
        yield Instance(server, queue, work, "one")


@pytest.fixture
async def http(server: ControlPlaneServer) -> AsyncIterator[HttpConnection]:
    connection = HttpConnection(server.config.url)
    yield connection
    await connection.close()


async def post(http: HttpConnection, path: str, json: Any = None, **params: Any) -> Any:
    return await http.request(HttpRequest("POST", path, json=json, params=params))


async def get(http: HttpConnection, path: str, **params: Any) -> Any:
    return await http.request(HttpRequest("GET", path, params=params))


async def submit(http: HttpConnection, **fields: Any) -> dict[str, Any]:
    wait = fields.pop("wait", 0)
    view: dict[str, Any] = await post(http, "/tasks", {"service_name": "echo", **fields}, wait=wait)
    return view


async def read_stream(http: HttpConnection, path: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(10), http.stream(HttpRequest("GET", path)) as lines:
        return [json.loads(line) async for line in lines if line]


async def beat(instance: Instance, *held: TaskDispatch, inbox_seq: int = 0, **fields: Any) -> Any:
    """Send a heartbeat of an instance that has heard an answer just now, or at `heard_at`."""
    attempts = [HeldAttempt(task_id=item.task_id, attempt=item.attempt, inbox_seq=inbox_seq) for item in held]
    fields = {"heard_at": datetime.now(UTC), **fields}
    return await instance.server.plane.services.heartbeat(
        Heartbeat(instance_id=instance.name, held=attempts, **fields)
    )
