"""Routes of tasks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, Field, TypeAdapter
from starlette.responses import Response, StreamingResponse

from llama_deploy.control_plane.http.stream_responses import (
    NDJSON,
    SERVER_SENT,
    event_response,
    server_sent_response,
)
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types import (
    EventDefinition,
    StreamedAttempt,
    TaskEvent,
    TaskMove,
    TaskSubmission,
    TaskView,
)
from llama_deploy.types.keys import PathKey
from llama_deploy.web.shortcuts import Call, Routes

Wait = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the task's end.")]
After = Annotated[int, Query(ge=-1, le=2**63 - 1, description="Only events whose index is greater.")]

WithAttempts = Annotated[
    bool,
    Query(description='Also a line `{"new_attempt": {...}}` wherever a new attempt takes over.'),
]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=-1,
        le=2**63 - 1,
        description="For server-sent events, in place of `after`: the id of the last event received.",
    ),
]
_STREAMS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The events after `after`, up to the terminal one. `text/event-stream` is sent if the"
        " request accepts it: each event has its index as `id`, and `event: attempt` tells where a new"
        " attempt takes over.",
        "content": {
            NDJSON: {"schema": TypeAdapter(TaskEvent | StreamedAttempt).json_schema()},
            SERVER_SENT: {"schema": {"type": "string"}},
        },
    },
    204: {"description": "Server-sent events only: the task has ended, and the client knows its last event."},
}


def task_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/tasks`."""
    router = APIRouter(prefix="/tasks", tags=["tasks"])

    @router.post("", summary="Submit a task, and wait for its end if requested")
    async def submit(submission: TaskSubmission, wait: Wait = 0.0) -> TaskView:
        return await plane.tasks.submit(submission, wait=wait)

    @router.get("/{task_id}", summary="Get a task, and wait for its end if requested")
    async def get_task(task_id: PathKey, wait: Wait = 0.0) -> TaskView:
        return await plane.tasks.get(task_id, wait=wait)

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
        accept: Annotated[str, Header(include_in_schema=False)] = "",
        last_event_id: LastEventId = None,
    ) -> Response:
        if SERVER_SENT in accept.lower():
            after = after if last_event_id is None else last_event_id
            if not await plane.tasks.has_more(task_id, after=after):
                return Response(status_code=HTTPStatus.NO_CONTENT)
            return server_sent_response(await plane.tasks.attempts(task_id, after=after))
        if attempts:
            return event_response(await plane.tasks.attempts(task_id, after=after))
        return event_response(await plane.tasks.events(task_id, after=after))

    @router.post("/{task_id}/events", status_code=HTTPStatus.ACCEPTED, summary="Send an event to a task")
    async def send_event(task_id: PathKey, event: EventDefinition) -> None:
        await plane.tasks.send_event(task_id, event)

    @router.post("/{task_id}/cancel", summary="Cancel a task")
    async def cancel(task_id: PathKey) -> TaskView:
        return await plane.tasks.cancel(task_id)

    @router.post("/{task_id}/move", summary="Move a task to another version of its service")
    async def move(task_id: PathKey, move: TaskMove) -> TaskView:
        return await plane.tasks.move(task_id, move)

    return router


class _SubmitQuery(BaseModel):
    wait: float = Field(default=0.0, ge=0, le=60, allow_inf_nan=False)


_SUBMISSION: Final = TypeAdapter(TaskSubmission)


def task_shortcuts(plane: ControlPlane) -> Routes:
    """Return the shortcut for `POST /tasks`."""

    async def submit(call: Call) -> bytes:
        submission = call.read_body(_SUBMISSION)
        view = await plane.tasks.submit(submission, wait=call.read_query(_SubmitQuery).wait)
        return view.model_dump_json().encode()

    return {("POST", "/tasks"): submit}
