"""A control plane with two tenants and users of one of them, who all have sessions, tasks and questions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pydantic_core
from pydantic import SecretStr
from workflows import Context, Workflow, step
from workflows.events import Event, HumanResponseEvent, InputRequiredEvent, StartEvent, StopEvent

from llama_deploy import Client, ControlPlaneConfig, SimpleMessageQueueConfig
from llama_deploy.deploy import HostedWorkflow, LocalStack
from llama_deploy.testing.conditions import eventually
from llama_deploy.types.owners import Owner
from llama_deploy.workflow import ServiceClient, TaskInfo
from tests.integration.guarded_server import ADMIN
from tests.integration.test_edge import Answer, send

OWNED: Final = ("tasks:read", "tasks:write", "inbox:answer")
OWNERS: Final = (Owner(), Owner("acme"), Owner("beta"), Owner("acme", "zoe"), Owner("acme", "yan"))


class Said(Event):
    text: str


class Talk(Workflow):
    @step
    async def talk(self, ev: StartEvent, ctx: Context, task: TaskInfo) -> StopEvent:
        ctx.write_event_to_stream(Said(text=ev.text))
        return StopEvent(result=[ev.text, task.task_id, task.session_id, task.tenant, task.subject])


class Call(Workflow):
    @step
    async def call(self, ev: StartEvent, client: ServiceClient) -> StopEvent:
        return StopEvent(result=await client.run("talk", text=ev.text))


class Ask(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> InputRequiredEvent:
        return InputRequiredEvent(prefix=ev.text)

    @step
    async def end(self, ev: HumanResponseEvent) -> StopEvent:
        return StopEvent(result=ev.response)


class Fail(Workflow):
    @step
    async def fail(self, ev: StartEvent) -> StopEvent:
        raise ValueError(f"no {ev.text}")


@dataclass(slots=True)
class Party:
    """The caller of one owner, with what it has."""

    owner: Owner
    key: str
    url: str
    question_id: str = ""
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A word in the ids, and nowhere else."""
        return "-".join(filter(None, ("of", *self.owner)))

    @property
    def secret(self) -> str:
        """A word in the arguments, the results, the events, the state and the prompts."""
        return f"secret-{self.name}-text"

    async def send(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request with the key."""
        return await send_json(self.url, self.key, method, path, body)

    async def json(self, method: str, path: str, body: object = None) -> Any:
        """Return the decoded answer to a request that succeeds."""
        answer = await self.send(method, path, body)
        assert answer.status in (200, 202, 204), (method, path, answer)
        return pydantic_core.from_json(answer.body) if answer.body else None

    async def fill(self) -> None:
        """Create a session with an ended, a failed and a waiting task."""
        name = self.name
        self.ids = {
            "session": f"s-{name}",
            "task": f"t-{name}",
            "open": f"open-{name}",
            "failed": f"f-{name}",
        }
        session = {"session_id": self.ids["session"], "tags": ["red"], "policy": "parallel"}
        await self.json("POST", "/sessions/create", session)
        await self.json("POST", f"/sessions/{session['session_id']}/state", {"note": self.secret})
        for task, service in (("task", "talk"), ("failed", "fail"), ("open", "ask")):
            body = {
                "task_id": self.ids[task],
                "service_name": service,
                "session_id": self.ids["session"],
                "arguments": {"text": self.secret},
                "tags": ["red"],
            }
            await self.json("POST", "/tasks", body)
        await self.json("GET", f"/tasks/{self.ids['task']}?wait=30")
        await self.json("GET", f"/tasks/{self.ids['failed']}?wait=30")

        async def is_asked() -> bool:
            page = await self.json("GET", f"/tasks/{self.ids['open']}/questions")
            self.question_id = page["items"][0]["question_id"] if page["items"] else ""
            return bool(self.question_id)

        await eventually(is_asked)


@dataclass(slots=True)
class Parties:
    """All callers, by their owners."""

    stack: LocalStack
    of: Mapping[Owner, Party]

    def __getitem__(self, owner: tuple[str, str | None]) -> Party:
        """Return the caller of a tenant, or of a subject of it."""
        return self.of[Owner(*owner)]


async def send_json(
    url: str, key: str | None, method: str, path: str, body: object = None, **headers: str
) -> Answer:
    """Send JSON with a key."""
    given = {"Content-Type": "application/json", **headers}
    if key is not None:
        given["Authorization"] = f"Bearer {key}"
    return await send(url, method, path, given, b"" if body is None else json.dumps(body).encode())


@asynccontextmanager
async def tenant_stack(folder: Path, uri: str | None = None, **settings: Any) -> AsyncIterator[Parties]:
    """Serve, with a caller of each owner who has something of its own. The store is a file, or at `uri`."""
    config = ControlPlaneConfig(
        port=0,
        state_store_uri=uri or f"sqlite:///{folder}/state.db",
        authentication="keys",
        admin_key=SecretStr(ADMIN),
        **settings,
    )
    hosted = [
        HostedWorkflow.named(name, workflow)
        for name, workflow in (("talk", Talk), ("ask", Ask), ("call", Call), ("fail", Fail))
    ]
    queue = SimpleMessageQueueConfig(port=0)
    async with (
        await LocalStack.start(hosted, control_plane_config=config, message_queue_config=queue) as stack,
        Client(stack.control_plane_url, api_key=ADMIN) as admin,
    ):
        parties = {}
        for owner in OWNERS:
            created = await admin.core.keys.create(
                OWNED, expires_in=None, tenant=owner.tenant or None, subject=owner.subject
            )
            parties[owner] = Party(owner, created.key, stack.control_plane_url)
            await parties[owner].fill()
        yield Parties(stack, parties)
