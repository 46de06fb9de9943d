"""The control plane's services and sessions."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter

from llama_deploy.client.aio import task_calls
from llama_deploy.client.aio.audit import AuditLog
from llama_deploy.client.aio.keys import KeyCollection
from llama_deploy.client.aio.server_api import ANYTHING, ServerApi
from llama_deploy.client.aio.storage import Storage
from llama_deploy.client.aio.waiting import EventData, data_of
from llama_deploy.client.deadline import answer_timeout
from llama_deploy.client.definitions import Service
from llama_deploy.client.event_streams import EventStream
from llama_deploy.client.paths import session_path, session_task_path
from llama_deploy.client.payload_encoding import (
    build_session_fork,
    build_session_options,
    build_submission,
    encode_arguments,
    encode_event,
    encode_json_object,
)
from llama_deploy.errors import InternalServerError
from llama_deploy.types import (
    EventDefinition,
    HistoryItem,
    HistoryPage,
    ServiceDefinition,
    SessionDefinition,
    SessionPage,
    SessionPolicy,
    SessionState,
    SessionSummary,
    TaskDefinition,
    TaskResult,
    TaskSubmission,
    generate_id,
)
from llama_deploy.web.answers import as_object, read_answer
from llama_deploy.web.http_exchange import HttpAnswer, HttpRequest

_PAGE: Final = 1000

SessionOrder = Literal["newest", "oldest"]

_SERVICES: Final = TypeAdapter(dict[str, Service]).validate_python
_ID: Final = TypeAdapter(str).validate_python
_SESSIONS: Final = TypeAdapter(dict[str, SessionDefinition]).validate_python
_TASKS: Final = TypeAdapter(list[TaskDefinition]).validate_python
_OBJECT: Final = TypeAdapter(dict[str, Any]).validate_python
_RESULT: Final = TypeAdapter[TaskResult | None](TaskResult | None).validate_python


class Core:
    """The control plane: its `services`, its `sessions`, its `storage`, its `keys` and its `audit` log."""

    def __init__(self, api: ServerApi) -> None:
        self.api = api
        """Calls the control plane."""
        self.services = ServiceCollection(api)
        self.sessions = SessionCollection(api)
        self.storage = Storage(api)
        self.keys = KeyCollection(api)
        self.audit = AuditLog(api)


class ServiceCollection:
    """The registered services."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api
        self.items: dict[str, Service] = {}
        """The services by name: what the last `list` returned, with what was registered and removed since."""

    async def list(self) -> list[Service]:
        """Return the registered services, ordered by name; one request per thousand.

        Of a service with many instances, each has some only, and `instances_total` says how many there are.
        """
        found: dict[str, Service] = {}
        after = ""
        while page := await self._api.get("/services", _SERVICES, after=after, limit=_PAGE):
            after = list(page)[-1]
            is_last = len(page) < _PAGE or after in found  # a server of 0.6 knows no pages
            found |= page
            if is_last:
                break
        self.items = found
        return [found[name] for name in sorted(found)]

    async def page(self, *, after: str = "", limit: int = 100) -> builtins.list[Service]:
        """Return the first services whose names follow `after`, in the order of the control plane.

        Fewer than `limit` are the last ones. With another page, `after` is the name of the last service.
        """
        return [*(await self._api.get("/services", _SERVICES, after=after, limit=limit)).values()]

    async def register(self, service_def: ServiceDefinition) -> Service:
        """Register a service, or replace its definition.

        Raises:
            InvalidRequestError: The definition is not valid.
        """
        await self._api.post_again("/services/register", ANYTHING, json=service_def)
        service = Service.model_validate(service_def.model_dump())
        self.items[service.id] = service
        return service

    async def deregister(self, name: str) -> None:
        """Remove a service and all its instances. Does nothing if it is not registered."""
        await self._api.post_again("/services/deregister", ANYTHING, service_name=name)
        self.items.pop(name, None)


class SessionCollection:
    """The sessions."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def list(self) -> list[Session]:
        """Return the sessions, ordered by id."""
        return [Session(self._api, found.session_id) for found in await self.definitions()]

    async def definitions(self) -> builtins.list[SessionDefinition]:
        """Return the sessions with their tasks and state, ordered by id; one request per page."""
        found: dict[str, SessionDefinition] = {}
        after = ""
        while page := await self._api.get("/sessions", _SESSIONS, after=after, limit=_PAGE):
            after = list(page)[-1]
            is_last = after in found  # a server of 0.6 knows no pages
            found |= page
            if is_last:
                break
        return [found[session_id] for session_id in sorted(found)]

    async def page(
        self, *, tag: str | None = None, order: SessionOrder = "newest", limit: int = 100, cursor: str = ""
    ) -> SessionPage:
        """Return a page of the sessions, without their tasks and states.

        Args:
            tag: Only sessions that were created with this tag. None: all.
            order: By their ids, which grow with time if the library has made them.
            limit: How many sessions to return at most, up to 10,000.
            cursor: `next_cursor` of the page before. Empty: the first page.

        Raises:
            InvalidCursorError: The cursor is malformed, or belongs to another list.
        """
        filters = {} if tag is None else {"tag": tag}
        read = SessionPage.model_validate
        return await self._api.get("/sessions", read, cursor=cursor, order=order, limit=limit, **filters)

    async def create(
        self, *, policy: SessionPolicy | str = SessionPolicy.ENQUEUE, tags: Sequence[str] = ()
    ) -> Session:
        """Create a session.

        Args:
            policy: What happens to a task that is submitted while an earlier one is open: `enqueue`,
                `parallel`, `parallel_while_waiting`, `reject` or `interrupt`.
            tags: Texts by which `page` finds the session, 20 at most.

        Raises:
            InvalidRequestError: The policy is unknown, or a tag cannot be one.
        """
        return await self._create(generate_id(), policy, tags)

    async def _create(
        self, session_id: str, policy: SessionPolicy | str, tags: Sequence[str] = ()
    ) -> Session:
        options = build_session_options(session_id, policy, tags)
        return Session(self._api, await self._api.post_again("/sessions/create", _ID, json=options))

    async def get(self, id: str) -> Session:  # noqa: A002 - 0.6 API
        """Return an existing session.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        definition = await self._api.get(session_path(id), SessionDefinition.model_validate)
        return Session(self._api, definition.session_id)

    async def get_or_create(
        self,
        id: str,  # noqa: A002 - 0.6 API
        *,
        policy: SessionPolicy | str = SessionPolicy.ENQUEUE,
    ) -> Session:
        """Return the session with this id; create it if it does not exist.

        Args:
            id: The id.
            policy: The policy of a new session, as in `create`. An existing session keeps its own.

        Raises:
            InvalidRequestError: The id is empty or too long, or the policy is unknown.
        """
        return await self._create(id, policy)

    async def delete(self, id: str, *, cancel: bool = False) -> None:  # noqa: A002 - 0.6 API
        """Delete a session and its tasks. Does nothing if it does not exist.

        Args:
            id: The id.
            cancel: Stop and delete tasks that have not ended.

        Raises:
            SessionBusyError: A task of the session has not ended, and `cancel` is False. Nothing is deleted.
        """
        path = session_path(id) + "/delete"
        await self._api.post_again(path, ANYTHING, **({"cancel": "true"} if cancel else {}))


class Session:
    """A conversation: tasks that run one after another and share a state.

    Example:
        ```python
        session = await client.core.sessions.create()
        print(await session.run("assistant", question="What is a tide?"))
        print(await session.run("assistant", question="And a neap tide?"))
        ```
    """

    def __init__(self, api: ServerApi, session_id: str) -> None:
        self._api = api
        self.id = session_id
        """The session's id."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def run(self, service_name: str, **run_kwargs: Any) -> str:
        """Run a task and return its result as text.

        Args:
            service_name: The service that runs the task.
            **run_kwargs: The run arguments of the workflow.

        Raises:
            TaskFailedError: The task failed or exceeded its time limit.
            TaskCancelledError: The task was cancelled.
            TaskTimeoutError: The task did not end within the client's `timeout`. It is still running.
            ServiceNotFoundError: The service is not registered.
            SessionNotFoundError: The session was deleted.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        submission = self._submission(service_name, run_kwargs)
        result = await task_calls.run(self._api, submission, self._api.deadline())
        return result.result

    async def run_nowait(self, service_name: str, **run_kwargs: Any) -> str:
        """Submit a task and return its id. Arguments and errors as in `run`, before the task runs."""
        submission = self._submission(service_name, run_kwargs)
        view = await task_calls.submit(self._api, submission, self._api.deadline())
        return view.task_id

    def _submission(self, service_name: str, run_kwargs: Mapping[str, Any]) -> TaskSubmission:
        arguments = encode_arguments(None, run_kwargs)
        return build_submission(service_name, arguments, session_id=self.id, parent=self._api.parent())

    async def create_task(self, task_def: TaskDefinition) -> str:
        """Submit a task and return its id. Submitting the same definition twice creates one task.

        Raises:
            ServiceNotFoundError: The service in `agent_id` is not registered.
            SessionNotFoundError: The session was deleted.
            SessionBusyError: The session's policy is `reject` and another task is open.
            ConflictError: Another task has this id, with another service, session or input.
            InvalidRequestError: The definition is not valid.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        deadline = self._api.deadline()

        def build() -> HttpRequest:
            path = session_path(self.id) + "/tasks"
            return HttpRequest("POST", path, json=task_def, timeout=answer_timeout(deadline))

        return await self._api.call_until(deadline, build, _ID)

    async def get_tasks(self) -> list[TaskDefinition]:
        """Return the session's tasks, in the order in which they were accepted; one request per page."""
        found: dict[str, TaskDefinition] = {}
        after = ""
        while page := await self._api.get(session_path(self.id) + "/tasks", _TASKS, after=after, limit=_PAGE):
            after = page[-1].task_id
            is_last = after in found  # a server of 0.6 knows no pages
            found |= {task.task_id: task for task in page}
            if is_last:
                break
        return [*found.values()]

    async def get_task_result(self, task_id: str) -> TaskResult | None:
        """Return the result of a task. None: it has not ended, or the session does not have this task.

        A failure is returned, not raised.

        Raises:
            SessionNotFoundError: The session does not exist.
        """
        return await self._api.get(session_task_path(self.id, task_id) + "/result", _RESULT)

    def get_task_result_stream(self, task_id: str) -> EventData:
        """Return the data of the task's events, from the first to the terminal one.

        The asyncio client yields them as they arrive. The one without `await` returns a list of all of them
        when the task has ended.

        Raises:
            TaskNotFoundError: The task does not exist.
            UnavailableError: The control plane did not respond for the client's `timeout`.
        """
        return data_of(self._api.read(EventStream(task_id, timeout=self._api.settings.timeout)))

    async def send_event(self, service_name: str, task_id: str, ev: BaseModel) -> None:
        """Send a workflow event to a task of the session. The event is stored when this returns.

        The call retries while the control plane does not respond; the event still counts once.

        Raises:
            TaskNotFoundError: The session has no such task.
            TaskFinishedError: The task has ended.
            InvalidRequestError: The task belongs to another service, or its workflow does not accept this
                event.
            SerializationError: The event cannot be converted to JSON.
        """
        await self.send_event_def(task_id, encode_event(ev, service_name=service_name))

    async def send_event_def(self, task_id: str, ev_def: EventDefinition) -> None:
        """Like `send_event`, with an encoded event. Without an idempotency key it is not retried."""
        path = session_task_path(self.id, task_id) + "/send_event"
        await task_calls.send_event(self._api, path, ev_def, self._api.deadline())

    async def get_state(self) -> SessionState:
        """Return the session's state and its version.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        path = session_path(self.id) + "/state"
        return _state(await self._api.answer_again(HttpRequest("GET", path)), source=path)

    async def history(self) -> list[HistoryItem]:
        """Return the session's tasks with their arguments and results, in the order of their acceptance.

        Several requests if there are many.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        found: list[HistoryItem] = []
        cursor: str | None = ""
        while cursor is not None:
            path = session_path(self.id) + "/history"
            page = await self._api.get(path, HistoryPage.model_validate, cursor=cursor)
            found += page.items
            cursor = page.next_cursor
        return found

    async def fork(
        self,
        task_id: str | None = None,
        *,
        policy: SessionPolicy | str | None = None,
        tags: Sequence[str] | None = None,
    ) -> Session:
        """Create a session with the state that this one had when a task had ended.

        The new session has no tasks: `history` of this one has what came before.

        Args:
            task_id: The task. None: the present state is copied.
            policy: The policy of the new session. None: that of this one.
            tags: Its tags. None: those of this one.

        Raises:
            SessionNotFoundError: The session was deleted.
            TaskNotFoundError: It has no such task.
            ConflictError: The task has not ended.
            StateNotKeptError: The state of that time was not kept.
            InvalidRequestError: The policy is unknown, or a tag cannot be one.
        """
        fork = build_session_fork(task_id=task_id, session_id=generate_id(), policy=policy, tags=tags)
        read = SessionSummary.model_validate
        made = await self._api.post_again(session_path(self.id) + "/fork", read, json=fork)
        return Session(self._api, made.session_id)

    async def get_workflow_state(self) -> dict[str, Any]:
        """Return what workflows keep in `ctx.store`, by the qualified name of the class of the state.

        The values are JSON as the services have stored it: objects of classes have a form of their own.

        Raises:
            SessionNotFoundError: The session was deleted.
        """
        return await self._api.get(session_path(self.id) + "/workflow_state", _OBJECT)

    async def update_state(self, changes: Mapping[str, Any], *, version: int | None = None) -> SessionState:
        """Merge the keys of `changes` into the state, and return the new state.

        Args:
            changes: The keys to overwrite.
            version: The version that the state must still have. None: any.

        Raises:
            StateConflictError: The state has another version: read it again and retry.
            SessionNotFoundError: The session was deleted.
            SerializationError: A value cannot be converted to JSON.
        """
        path = session_path(self.id) + "/state"
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        request = HttpRequest("POST", path, json=encode_json_object(changes), headers=headers)
        return _state(await self._api.answer(request), source=path)

    async def set_state(self, state: Mapping[str, Any], *, version: int) -> SessionState:
        """Replace the state if it still has `version`, and return the new state.

        Raises:
            StateConflictError: The state has another version: read it again and retry.
            SessionNotFoundError: The session was deleted.
            SerializationError: A value cannot be converted to JSON.
        """
        path = session_path(self.id) + "/state"
        headers = {"If-Match": f'"{version}"'}
        request = HttpRequest("PUT", path, json=encode_json_object(state), headers=headers)
        return _state(await self._api.answer(request), source=path)


def _state(answer: HttpAnswer, *, source: str) -> SessionState:
    tag = answer.headers.get("etag", "").strip('"')
    if not tag.isdecimal():
        raise InternalServerError(f"the response to {source} does not have a state version in `ETag`")
    return SessionState(state=read_answer(answer.value, as_object, source=source), version=int(tag))
