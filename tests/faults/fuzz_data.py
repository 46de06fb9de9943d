"""What a control plane holds while its routes are tried with values that a schema allows or forbids."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from llama_deploy import Client
from llama_deploy.client import TaskHandle
from llama_deploy.testing.conditions import eventually
from llama_deploy.types import ServiceDefinition, TaskStatus
from llama_deploy.types.retention import PurgeRequest
from llama_deploy.types.task_lists import TaskFilter

SERVICE: Final = "fuzzed"
SPARE: Final = "spare"
"""A service without an instance: its tasks stay queued, and it may be deregistered."""
PATIENCE: Final = 60.0


@dataclass
class Known:
    """Values that exist, or have existed, by the name under which a request gives them."""

    tasks: list[tuple[str, str]] = field(default_factory=list)
    """Tasks with their sessions."""
    sessions: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    cursors: list[str] = field(default_factory=list)
    exports: list[dict[str, Any]] = field(default_factory=list)

    def choose(self, chance: random.Random) -> dict[str, str]:
        """Return one value for each name; task and session belong together in most of them."""
        task_id, session_id = chance.choice(self.tasks)
        if chance.random() < 0.3:
            session_id = chance.choice(self.sessions)
        service = chance.choice([SERVICE, SPARE])
        return {
            "task_id": task_id,
            "parent": task_id,
            "session_id": session_id,
            "session": session_id,
            "question_id": chance.choice(self.questions),
            "token": chance.choice(self.tokens),
            "cursor": chance.choice(self.cursors),
            "service_name": service,
            "service": service,
        }


async def reach(task: TaskHandle, *wanted: TaskStatus) -> None:
    """Wait until a task has one of these statuses."""

    async def reached() -> bool:
        return await task.status() in wanted

    await eventually(reached, seconds=PATIENCE)


async def fill(client: Client, known: Known) -> None:
    """Add tasks of every status, streams, questions, sessions with tags, forks, and removed tasks."""
    await client.core.services.register(ServiceDefinition(service_name=SPARE))
    session = await client.core.sessions.create(tags=["round"])
    handles: dict[str, TaskHandle] = {}
    for act in ("succeed", "fail", "stream", "late"):
        handles[act] = await client.submit(
            SERVICE, session=session if act in {"succeed", "stream"} else None, tags=["round"], act=act
        )
    for handle in handles.values():
        await reach(handle, TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.TIMED_OUT)
    known.exports.append((await client.tasks.export(handles["stream"].task_id)).model_dump(mode="json"))
    fork = await session.fork(handles["stream"].task_id, tags=["forked"])
    known.sessions += [session.id, fork.id]
    await client.core.storage.purge(PurgeRequest(older_than_seconds=0, status=[TaskStatus.FAILED], limit=1))

    for act in ("long", "long", "ask", "ask", "ask", "ask", "ask"):
        name = f"{act}{len(handles)}"
        handles[name] = await client.submit(SERVICE, tags=[act], act=act)
        await reach(handles[name], TaskStatus.RUNNING, TaskStatus.WAITING)
    handles["queued"] = await client.submit(SPARE, session=fork)
    handles["pending"] = await client.submit(SPARE, session=fork)
    for name in [name for name in handles if name.startswith("ask")]:
        await reach(handles[name], TaskStatus.WAITING)
        for question in await handles[name].questions():
            known.questions.append(question.question_id)
            callback = await client.inbox.callback(question.question_id)
            known.tokens.append(callback.url.rsplit("/", 1)[-1])
    cancelled = next(name for name in handles if name.startswith("long"))
    await handles[cancelled].cancel()
    await reach(handles[cancelled], TaskStatus.CANCELLED)
    pages = [
        (await client.tasks.page(TaskFilter(), limit=1)).next_cursor,
        (await client.tasks.page(TaskFilter(status=["failed"]), limit=1)).next_cursor,
        (await client.inbox.page(limit=1)).next_cursor,
    ]
    known.cursors += [cursor for cursor in pages if cursor is not None]
    known.tasks += [(handle.task_id, str(handle.session_id)) for handle in handles.values()]
    known.sessions += [str(handle.session_id) for handle in handles.values()]
