"""The endpoints of the 0.6 API, as methods of `ControlPlaneServer`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import Body, Header, Query, Request, Response
from pydantic import BeforeValidator
from starlette.responses import StreamingResponse

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.http.session_routes import Cursor
from llama_deploy.control_plane.http.stream_responses import data_response
from llama_deploy.control_plane.http.task_routes import Wait
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.requests.services.service_requests import INSTANCES, PAGE, seen_by
from llama_deploy.control_plane.requests.sessions.session_lists import SessionOrder
from llama_deploy.errors import (
    InvalidRequestError,
    ServiceNotFoundError,
    SessionNotFoundError,
    TaskNotFoundError,
    TaskRemovedError,
)
from llama_deploy.message_queues.base import MessageQueueConfig
from llama_deploy.state_stores.large_values import text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types import (
    EventDefinition,
    ServiceDefinition,
    SessionDefinition,
    SessionOptions,
    SessionPage,
    SessionState,
    TaskDefinition,
    TaskResult,
)
from llama_deploy.types.instance_protocol import PROTOCOL_VERSION
from llama_deploy.types.json_values import JsonObject
from llama_deploy.types.keys import Key, PathKey, public_id
from llama_deploy.types.tags import Tag
from llama_deploy.web.edge.caller_state import caller_of, owner_of

_IfMatch = Annotated[str | None, Header(description='The version that was read, such as `"3"`.')]
_NameInPath = Annotated[str, BeforeValidator(unquote)]
_Page = Annotated[int, Query(ge=1, le=10_000)]


class CoreEndpoints(ABC):
    """The control plane, its services, its sessions and their tasks and state."""

    config: ControlPlaneConfig

    @property
    @abstractmethod
    def plane(self) -> ControlPlane:
        """The control plane that answers."""

    async def home(self) -> dict[str, Any]:
        """Return the type of the server and its public settings."""
        return {"running": True, "type": "control_plane", **self.config.public_settings()}

    async def show_home(self, request: Request) -> dict[str, Any]:
        """Return the type of the server, and to callers of the default tenant its public settings."""
        home = await self.home()
        if caller_of(request.scope).is_in_default_tenant:
            return home
        # They name services and sessions, and say how the servers are reached.
        return {name: home[name] for name in ("running", "type")}

    async def get_message_queue_config(self) -> dict[str, Any]:
        """Return how to connect to the message queue, without credentials."""
        settings = self.plane.queue.as_config()
        if isinstance(settings, MessageQueueConfig):
            return settings.public_settings()
        # Of a queue that was written for 0.6. Which of its settings are credentials is not known.
        return {"type": type(settings).__name__}

    async def register_service(self, service_def: ServiceDefinition) -> dict[str, Any]:
        """Register a service or an instance of it; returns the settings of the control plane."""
        await self.plane.services.register(service_def)
        return {**self.config.public_settings(), "protocol": PROTOCOL_VERSION}

    async def deregister_service(
        self, request: Request, service_name: str, instance_id: str | None = None
    ) -> None:
        """Remove a service, or one instance of it. Does nothing if it is not there, as in 0.6."""
        with suppress(ServiceNotFoundError):
            by = actor_of(self.plane, request.scope)
            await self.plane.services.deregister(service_name, instance_id=instance_id, by=by)

    async def get_all_services(
        self, request: Request, after: str = "", limit: _Page = PAGE, instances: _Page = INSTANCES
    ) -> dict[str, ServiceDefinition]:
        """Return services by name, the first that follow `after`, each with some of its instances."""
        found = await self.plane.services.all(after=after, limit=limit, instances=instances)
        return {name: seen_by(owner_of(request.scope), each) for name, each in found.items()}

    async def get_service(
        self, request: Request, service_name: _NameInPath, after: str = "", limit: _Page = PAGE
    ) -> ServiceDefinition:
        """Return a service with its instances, those first whose ids follow `after`."""
        found = await self.plane.services.get(service_name, after=after, limit=limit)
        return seen_by(owner_of(request.scope), found)

    async def create_session(
        self, request: Request, options: Annotated[SessionOptions | None, Body()] = None
    ) -> str:
        """Create a session and return its id."""
        owner, by = owner_of(request.scope), actor_of(self.plane, request.scope)
        created = await self.plane.sessions.create(options or SessionOptions(), owner=owner, by=by)
        return public_id(created)

    async def get_all_sessions(
        self,
        request: Request,
        after: Key | Literal[""] = "",
        limit: _Page = 1000,
        cursor: Cursor = None,
        tag: Tag | None = None,
        order: SessionOrder | None = None,
    ) -> dict[str, SessionDefinition] | SessionPage:
        """Return sessions by id, ordered by it; with `cursor`, `tag` or `order` a page of summaries.

        The first are those that follow `after`; there are fewer than `limit` if they are large, and none only
        if none follow. An empty `cursor` is the first page; each answer has the cursor of the next one.
        """
        if cursor is None and tag is None and order is None:
            return await self.plane.sessions.all(owner_of(request.scope), after=after, limit=limit)
        return await self.plane.session_lists.page(
            owner_of(request.scope), tag=tag, order=order or "newest", cursor=cursor or None, limit=limit
        )

    async def get_session(self, session_id: PathKey) -> SessionDefinition:
        """Return a session."""
        return await self.plane.sessions.get(session_id)

    async def delete_session(
        self,
        request: Request,
        session_id: PathKey,
        cancel: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Delete a session with its tasks. Does nothing if it is not there, as in 0.6.

        If a task of it has not ended, the answer is 409, unless `cancel` is true.
        """
        with suppress(SessionNotFoundError):
            by, subject = actor_of(self.plane, request.scope), owner_of(request.scope).subject
            await self.plane.sessions.delete(session_id, cancel=cancel, subject=subject, by=by)

    async def add_task_to_session(
        self, request: Request, session_id: PathKey, task_def: TaskDefinition
    ) -> str:
        """Accept a task and return its id. The task is durable when this returns."""
        if task_def.session_id not in (None, session_id):
            raise InvalidRequestError(
                f"the task names session {public_id(task_def.session_id or '')}, the path"
                f" {public_id(session_id)}; send the same id"
            )
        task = task_def.model_copy(update={"session_id": session_id})
        by, subject = actor_of(self.plane, request.scope), owner_of(request.scope).subject
        return (await self.plane.tasks.submit_definition(task, subject=subject, by=by)).task_id

    async def get_session_tasks(
        self, session_id: PathKey, after: Key | Literal[""] = "", limit: _Page = 1000
    ) -> list[TaskDefinition]:
        """Return the tasks of a session in the order in which they were accepted, from the one after `after`.

        There are fewer than `limit` if they are large. None are returned only if none follow.
        """
        return [
            _definition(task)
            for task in await self.plane.sessions.tasks(session_id, after=after, limit=limit)
        ]

    async def get_current_task(self, session_id: PathKey) -> TaskDefinition | None:
        """Return the task of a session that was accepted last, or null."""
        task = await self.plane.sessions.last_task(session_id)
        return None if task is None else _definition(task)

    async def get_task_result(
        self, session_id: PathKey, task_id: PathKey, wait: Wait = 0.0
    ) -> TaskResult | None:
        """Return a task's result, or null while it has not ended or if the session has no such task.

        If the task was removed after its retention time, the answer is 410.
        """
        try:
            return (await self.plane.tasks.get(task_id, session_id=session_id, wait=wait)).result
        except TaskRemovedError:
            raise
        except TaskNotFoundError:
            return None

    async def get_task_result_stream(self, session_id: PathKey, task_id: PathKey) -> StreamingResponse:
        """Return the data of a task's events as they occur, one per line. The terminal event is last."""
        return data_response(await self.plane.tasks.events(task_id, session_id=session_id))

    async def send_event(
        self, request: Request, session_id: PathKey, task_id: PathKey, event_def: EventDefinition
    ) -> None:
        """Send an event to a task."""
        by = actor_of(self.plane, request.scope)
        await self.plane.tasks.send_event(task_id, event_def, session_id=session_id, by=by)

    async def get_session_state(self, session_id: PathKey, response: Response) -> dict[str, Any]:
        """Return a session's state; the ETag is its version."""
        return _with_version(await self.plane.sessions.state(session_id), response)

    async def update_session_state(
        self,
        request: Request,
        session_id: PathKey,
        state: JsonObject,
        response: Response,
        if_match: _IfMatch = None,
    ) -> dict[str, Any]:
        """Overwrite the given keys of a session's state; returns all of it.

        With If-Match, only if the state still has that version.
        """
        version = None if if_match is None else _version(if_match)
        by = actor_of(self.plane, request.scope)
        changed = await self.plane.sessions.merge_state(session_id, state, version=version, by=by)
        return _with_version(changed, response)

    async def replace_session_state(
        self,
        request: Request,
        session_id: PathKey,
        state: JsonObject,
        response: Response,
        if_match: _IfMatch = None,
    ) -> dict[str, Any]:
        """Replace a session's state if it still has the version in If-Match."""
        by, version = actor_of(self.plane, request.scope), _version(if_match)
        changed = await self.plane.sessions.replace_state(session_id, state, version=version, by=by)
        return _with_version(changed, response)


def _definition(task: TaskRecord) -> TaskDefinition:
    return TaskDefinition(
        input=text_of(task.input),
        task_id=public_id(task.task_id),
        session_id=public_id(task.session_id),
        agent_id=task.service_name or None,
    )


def _with_version(state: SessionState, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = f'"{state.version}"'
    return state.state


def _version(if_match: str | None) -> int:
    match = re.fullmatch(r'"?(\d{1,18})"?', if_match or "")
    if match is None:
        raise InvalidRequestError(
            f'If-Match must be the version that you read, such as "3", not {if_match!r};'
            " GET returns it as ETag"
        )
    return int(match.group(1))
