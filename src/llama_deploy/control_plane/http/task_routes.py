"""Routes of tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field, TypeAdapter
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.http.stream_responses import (
    NDJSON,
    SERVER_SENT,
    event_response,
    server_sent_response,
)
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.streams.event_filter import EventFilter
from llama_deploy.types import (
    EventDefinition,
    StreamCursor,
    StreamedAttempt,
    TaskEvent,
    TaskMove,
    TaskSubmission,
    TaskView,
)
from llama_deploy.types.exact_values import MAX_NUMBER
from llama_deploy.types.ids import MAX_ID_LENGTH
from llama_deploy.types.keys import DEFAULT_TENANT, PathKey, internal_key
from llama_deploy.types.task_lists import TaskDetails
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import owner_of
from llama_deploy.web.shortcuts import Call, ForSome, Routes

Wait = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the task's end.")]
After = Annotated[int, Query(ge=-1, le=MAX_NUMBER, description="Only events whose index is greater.")]

WithAttempts = Annotated[
    bool,
    Query(description='Also a line `{"new_attempt": {...}}` wherever a new attempt takes over.'),
]
Types = Annotated[
    Sequence[Annotated[str, Field(max_length=1000)]],
    Query(
        max_length=50,
        description="Only events of these classes, and the terminal one: names such as `ProgressEvent`,"
        ' separated by commas or repeated. A line `{"cursor": n}`, or an id alone, tells how far the reader'
        " has come without events for it.",
    ),
]
Internal = Annotated[
    bool,
    Query(description="Also the internal events of the workflow library, if the service streams them."),
]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=-1,
        le=MAX_NUMBER,
        description="For server-sent events, in place of `after`: the id of the last event received.",
    ),
]
_STREAMS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The events after `after`, up to the terminal one. `text/event-stream` is sent if the"
        " request accepts it: each event has its index as `id`, and `event: attempt` tells where a new"
        " attempt takes over.",
        "content": {
            NDJSON: {"schema": TypeAdapter(TaskEvent | StreamedAttempt | StreamCursor).json_schema()},
            SERVER_SENT: {"schema": {"type": "string"}},
        },
    },
    204: {"description": "Server-sent events only: the task has ended, and the client knows its last event."},
}


def task_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/tasks`."""
    router = new_router(CONTROL_PLANE_ACCESS, plane.owned_rows, prefix="/tasks", tags=["tasks"])

    @router.post("", summary="Submit a task, and wait for its end if requested")
    async def submit(submission: TaskSubmission, request: Request, wait: Wait = 0.0) -> TaskView:
        by, subject = actor_of(plane, request.scope), owner_of(request.scope).subject
        return await plane.tasks.submit(submission, wait=wait, subject=subject, by=by)

    @router.get(
        "/{task_id}",
        summary="Get a task with all that is known of it; or wait for its end, and get its status and result",
    )
    async def get(task_id: PathKey, wait: Wait = 0.0) -> TaskDetails | TaskView:
        return await get_task(plane, task_id, wait=wait)

    @router.get(
        "/{task_id}/events",
        summary="Stream a task's events as they occur, one per line, or as server-sent events",
        response_class=StreamingResponse,
        responses=_STREAMS,
    )
    async def get_events(
        task_id: PathKey,
        after: After = -1,
        attempts: WithAttempts = False,  # noqa: FBT002 - FastAPI passes it by name
        types: Types = (),
        internal: Internal = False,  # noqa: FBT002 - as above
        accept: Annotated[str, Header(include_in_schema=False)] = "",
        last_event_id: LastEventId = None,
    ) -> Response:
        names = frozenset(filter(None, (name.strip() for each in types for name in each.split(","))))
        wanted = EventFilter(names, internal=internal)
        if SERVER_SENT in accept.lower():
            after = after if last_event_id is None else last_event_id
            if not await plane.streams.has_more(task_id, after=after):
                return Response(status_code=HTTPStatus.NO_CONTENT)
            return server_sent_response(await plane.streams.open(task_id, after=after, wanted=wanted))
        events = await plane.streams.open(task_id, after=after, wanted=wanted, attempts=attempts)
        return event_response(events, cursors=bool(names))

    @router.post("/{task_id}/events", status_code=HTTPStatus.ACCEPTED, summary="Send an event to a task")
    async def send_event(task_id: PathKey, event: EventDefinition, request: Request) -> None:
        await plane.tasks.send_event(task_id, event, by=actor_of(plane, request.scope))

    @router.post("/{task_id}/cancel", summary="Cancel a task")
    async def cancel(task_id: PathKey, request: Request) -> TaskView:
        return await plane.tasks.cancel(task_id, by=actor_of(plane, request.scope))

    @router.post("/{task_id}/move", summary="Move a task to another version of its service")
    async def move(task_id: PathKey, move: TaskMove, request: Request) -> TaskView:
        return await plane.tasks.move(task_id, move, by=actor_of(plane, request.scope))

    return router


class _WaitQuery(BaseModel):
    wait: float = Field(default=0.0, ge=0, le=60, allow_inf_nan=False)


_SUBMISSION: Final = TypeAdapter(TaskSubmission)
_PLAIN_ID: Final = re.compile(rf"[0-9A-Za-z_-]{{1,{MAX_ID_LENGTH}}}")
"""An id that needs neither decoding nor a check."""
_OTHER_ROUTES: Final = frozenset({"count"})
"""Routes below `/tasks/` that look like ids."""


def task_shortcuts(plane: ControlPlane) -> Routes:
    """Return the shortcuts for `POST /tasks`, and for `GET /tasks/{task_id}` with a time to wait."""

    async def submit(call: Call) -> bytes:
        submission = call.read_body(_SUBMISSION)
        wait = call.read_query(_WaitQuery).wait
        by = actor_of(plane, call.scope)
        if not (wait and call.is_large):
            return (await plane.tasks.submit(submission, wait=wait, by=by)).model_dump_json().encode()
        # The arguments are stored, and need not stay in memory until the task ends.
        view = await plane.tasks.submit(submission, by=by)
        task_id = submission.task_id
        del submission
        call.release_body()
        if not view.status.is_terminal:
            view = await plane.tasks.get(task_id, wait=wait)
        return view.model_dump_json().encode()

    async def get_result(call: Call) -> bytes:
        key = internal_key(DEFAULT_TENANT, call.rest)
        view = await get_task(plane, key, wait=call.read_query(_WaitQuery).wait)
        return view.model_dump_json().encode()

    return {("POST", "/tasks"): submit, ("GET", "/tasks/"): ForSome(get_result, _asks_for_result)}


async def get_task(plane: ControlPlane, task_id: str, *, wait: float) -> TaskDetails | TaskView:
    """Return a task with all that is known of it. Those who wait ask for the result, again and again."""
    return await (plane.tasks.get(task_id, wait=wait) if wait else plane.task_lists.details(task_id))


def _asks_for_result(scope: Scope, rest: str) -> bool:
    """Whether a request below `/tasks/` is a usual one of those who wait for a result."""
    return (
        scope["query_string"].startswith(b"wait=")
        and _PLAIN_ID.fullmatch(rest) is not None
        and rest not in _OTHER_ROUTES
    )
