"""Routes that retry, export or import tasks, and that change many at once."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request

from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.bulk_changes import BulkRequest, BulkResult
from llama_deploy.types.keys import Key, PathKey
from llama_deploy.types.retries import TaskRetry
from llama_deploy.types.task_export import TaskExport
from llama_deploy.types.task_lists import TaskDetails
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import owner_of

NewId = Annotated[Key | None, Query(description="The id of the copy. Left out: that of the task.")]


def retry_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/tasks` that retry, export or import a task, or change many at once."""
    router = new_router(CONTROL_PLANE_ACCESS, plane.owned_rows, prefix="/tasks", tags=["tasks"])

    @router.post("/{task_id}/retry", summary="Try an ended task again, as a new task")
    async def retry(task_id: PathKey, retry: TaskRetry, request: Request) -> TaskDetails:
        task = await plane.retries.retry(task_id, retry, by=actor_of(plane, request.scope))
        return await plane.task_lists.details(task.task_id)

    @router.get("/{task_id}/export", summary="Get all that is stored of a task, as one document")
    async def export(task_id: PathKey) -> TaskExport:
        return await plane.exports.export(task_id)

    @router.post("/import", summary="Store a copy of an exported task")
    async def import_(
        document: Annotated[dict[str, Any], Body()], request: Request, task_id: NewId = None
    ) -> TaskDetails:
        owner, by = owner_of(request.scope), actor_of(plane, request.scope)
        copy = await plane.exports.import_(document, task_id=task_id, owner=owner, by=by)
        return await plane.task_lists.details(copy)

    @router.post("/bulk", summary="Cancel or retry the tasks of a filter, one batch with each request")
    async def bulk(request: BulkRequest, http_request: Request) -> BulkResult:
        owner, by = owner_of(http_request.scope), actor_of(plane, http_request.scope)
        return await plane.bulk_changes.change(request, owner=owner, by=by)

    return router
