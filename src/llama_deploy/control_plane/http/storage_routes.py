"""Routes of the store: its size, and purges."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.retention import PurgeAnswer, PurgeRequest, StorageView
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS

_Exact = Annotated[
    bool, Query(description="Measure every table and count its rows, which reads the whole store.")
]


def storage_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/storage`."""
    router = new_router(CONTROL_PLANE_ACCESS, prefix="/storage", tags=["storage"])

    @router.get("", summary="Get the size of the state store")
    async def get_storage(exact: _Exact = False) -> StorageView:  # noqa: FBT002 - FastAPI passes it by name
        return await plane.storage.view(exact=exact)

    @router.post("/purge", summary="Remove ended tasks, or count those that would be removed")
    async def purge(request: PurgeRequest, http_request: Request) -> PurgeAnswer:
        return await plane.storage.purge(request, by=actor_of(plane, http_request.scope))

    return router
