"""Routes for the instances of services."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Body
from pydantic import TypeAdapter

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.types.attempts import (
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    ReleaseReply,
    ReleaseRequest,
)
from llama_deploy.web.shortcuts import Call, Routes

_Claims = Annotated[list[ClaimRequest], Body(max_length=1000)]
_CLAIMS: Final[TypeAdapter[list[ClaimRequest]]] = TypeAdapter(_Claims)
_CLAIM_REPLIES: Final = TypeAdapter(list[ClaimReply])


def instance_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/attempts` and `/instances`."""
    router = APIRouter(tags=["instances"])

    @router.post("/attempts/claim", summary="Ask to own attempts")
    async def claim(requests: _Claims) -> list[ClaimReply]:
        return await plane.attempts.claim(requests)

    @router.post("/attempts/release", summary="Hand attempts back")
    async def release(
        requests: Annotated[list[ReleaseRequest], Body(max_length=1000)],
    ) -> list[ReleaseReply]:
        return await plane.attempts.release(requests)

    @router.post("/instances/heartbeat", summary="Say that an instance is alive")
    async def heartbeat(beat: Heartbeat) -> HeartbeatReply:
        return await plane.services.heartbeat(beat)

    return router


def instance_shortcuts(plane: ControlPlane) -> Routes:
    """Return the shortcut for `POST /attempts/claim`."""

    async def claim(call: Call) -> bytes:
        requests = call.read_body(_CLAIMS)
        return _CLAIM_REPLIES.dump_json(await plane.attempts.claim(requests))

    return {("POST", "/attempts/claim"): claim}
