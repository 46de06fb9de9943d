"""Routes of sessions beyond the 0.6 API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types import HistoryPage, SessionFork, SessionSummary
from llama_deploy.types.keys import PathKey
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS

Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before. Empty: the first page.")]
_Limit = Annotated[int, Query(ge=1, le=1000, description="The most items on the page.")]


def session_routes(plane: ControlPlane) -> APIRouter:
    """Return further routes under `/sessions`."""
    router = new_router(
        CONTROL_PLANE_ACCESS, plane.owned_rows, prefix="/sessions/{session_id}", tags=["sessions"]
    )

    @router.get("/history", summary="Get the tasks of a session with arguments and results, oldest first")
    async def history(session_id: PathKey, cursor: Cursor = None, limit: _Limit = 100) -> HistoryPage:
        return await plane.session_lists.history(session_id, cursor=cursor or None, limit=limit)

    @router.post("/fork", summary="Create a session with the state that this one had after a task")
    async def fork(session_id: PathKey, fork: SessionFork, request: Request) -> SessionSummary:
        return await plane.session_forks.fork(session_id, fork, by=actor_of(plane, request.scope))

    @router.get("/workflow_state", summary="Get what workflows keep in `ctx.store`, by class")
    async def workflow_state(session_id: PathKey) -> dict[str, Any]:
        return await plane.sessions.workflow_state(session_id)

    return router
