"""Routes of tasks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, TypeAdapter
from starlette.responses import StreamingResponse

from llama_deploy.control_plane.http.stream_responses import NDJSON, event_response
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types import EventDefinition, TaskEvent, TaskMove, TaskSubmission, TaskView
from llama_deploy.types.keys import PathKey
from llama_deploy.web.shortcuts import Call, Routes

Wait = Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the task's end.")]
After = Annotated[int, Query(ge=-1, le=2**63 - 1, description="Only events whose index is greater.")]


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
        summary="Stream a task's events as they occur, one per line",
        response_class=StreamingResponse,
        responses={200: {"content": {NDJSON: {"schema": TaskEvent.model_json_schema()}}}},
    )
    async def get_events(task_id: PathKey, after: After = -1) -> StreamingResponse:
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
