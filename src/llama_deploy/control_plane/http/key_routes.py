"""Routes of API keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from llama_deploy.control_plane.decisions.cursors import MAX_CURSOR_LENGTH
from llama_deploy.control_plane.http.actors import actor_of
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.requests.callers.api_keys import MAX_KEY_PAGE
from llama_deploy.types.api_keys import ApiKeyPage, ApiKeyView, CreatedApiKey, NewApiKey
from llama_deploy.types.tokens import CreatedToken, NewToken
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import caller_of

KeyId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[0-9a-z]+$")]
_Cursor = Annotated[
    str | None, Query(max_length=MAX_CURSOR_LENGTH, description="`next_cursor` of the page before.")
]
_Limit = Annotated[int, Query(ge=1, le=MAX_KEY_PAGE, description="The most keys to return.")]


def of_tenant(request: Request) -> str | None:
    """Return the tenant whose keys a caller manages. None: those of all."""
    return caller_of(request.scope).tenant or None


def key_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/keys`, and `/tokens`."""
    router = new_router(CONTROL_PLANE_ACCESS, tags=["keys"])
    keys = plane.api_keys

    @router.get("/keys", summary="List the keys without their secrets, the newest first")
    async def list_keys(request: Request, cursor: _Cursor = None, limit: _Limit = 100) -> ApiKeyPage:
        return await keys.list(of_tenant(request), cursor=cursor, limit=limit)

    @router.post("/keys", summary="Create a key; its secret is shown only now")
    async def create_key(new: NewApiKey, request: Request, response: Response) -> CreatedApiKey:
        response.headers["Cache-Control"] = "no-store"
        by, actor = caller_of(request.scope).subject, actor_of(plane, request.scope)
        return await keys.create(new, by=by, tenant=of_tenant(request), actor=actor)

    @router.post("/keys/{key_id}/revoke", summary="Revoke a key at once")
    async def revoke_key(key_id: KeyId, request: Request) -> ApiKeyView:
        actor = actor_of(plane, request.scope)
        return await keys.revoke(key_id, tenant=of_tenant(request), actor=actor)

    @router.post("/tokens", summary="Get a token for one task, session, stream or question")
    async def issue_token(new: NewToken, request: Request, response: Response) -> CreatedToken:
        response.headers["Cache-Control"] = "no-store"
        actor = actor_of(plane, request.scope)
        return await keys.issue_token(new, caller=caller_of(request.scope), actor=actor)

    return router
