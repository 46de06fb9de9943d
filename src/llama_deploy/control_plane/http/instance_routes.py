"""Routes for the instances of services."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Body
from pydantic import TypeAdapter

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.messages import QueueMessage
from llama_deploy.messages.base import WIRE_VERSION
from llama_deploy.types.instance_protocol import (
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    JournalReply,
    JournalWrite,
    PartReply,
    PartRequest,
    ProcessDeath,
    ReleaseReply,
    ReleaseRequest,
)
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.shortcuts import Call, Routes

_Claims = Annotated[list[ClaimRequest], Body(max_length=1000)]
_CLAIMS: Final[TypeAdapter[list[ClaimRequest]]] = TypeAdapter(_Claims)
_CLAIM_REPLIES: Final = TypeAdapter(list[ClaimReply])
_Writes = Annotated[list[JournalWrite], Body(max_length=1000)]
_WRITES: Final[TypeAdapter[list[JournalWrite]]] = TypeAdapter(_Writes)
_JOURNAL_REPLIES: Final = TypeAdapter(list[JournalReply])


def instance_routes(plane: ControlPlane) -> APIRouter:
    """Return the routes under `/attempts` and `/instances`."""
    router = new_router(CONTROL_PLANE_ACCESS, tags=["instances"])

    @router.post("/attempts/claim", summary="Claim attempts")
    async def claim(requests: _Claims) -> list[ClaimReply]:
        return await plane.attempts.claim(requests)

    @router.post("/attempts/part", summary="Fetch a slice of what the answer to a claim has omitted")
    async def part(request: PartRequest) -> PartReply:
        return await plane.attempts.parts.read(request)

    @router.post("/attempts/journal", summary="Append to journals of runs, and park runs")
    async def journal(writes: _Writes) -> list[JournalReply]:
        return await plane.attempts.journal(writes)

    @router.post(
        "/attempts/report",
        status_code=HTTPStatus.NO_CONTENT,
        summary="Upload a report that is too large for the queue",
    )
    async def report(message: QueueMessage) -> None:
        QueueMessage.check_version((message.model_extra or {}).get("v", WIRE_VERSION))
        await plane.uploads.take(message)

    @router.post("/attempts/release", summary="Release attempts")
    async def release(
        requests: Annotated[list[ReleaseRequest], Body(max_length=1000)],
    ) -> list[ReleaseReply]:
        return await plane.attempts.release(requests)

    @router.post("/instances/heartbeat", summary="Renew the lease of an instance")
    async def heartbeat(beat: Heartbeat) -> HeartbeatReply:
        return await plane.services.heartbeat(beat)

    @router.post(
        "/instances/death",
        status_code=HTTPStatus.NO_CONTENT,
        summary="Report that the process of instances has ended",
    )
    async def death(death: ProcessDeath) -> None:
        await plane.deaths.report(death)

    return router


def instance_shortcuts(plane: ControlPlane) -> Routes:
    """Return the shortcuts for `POST /attempts/claim` and `POST /attempts/journal`."""

    async def claim(call: Call) -> bytes:
        requests = call.read_body(_CLAIMS)
        return _CLAIM_REPLIES.dump_json(await plane.attempts.claim(requests))

    async def journal(call: Call) -> bytes:
        writes = call.read_body(_WRITES)
        return _JOURNAL_REPLIES.dump_json(await plane.attempts.journal(writes))

    return {("POST", "/attempts/claim"): claim, ("POST", "/attempts/journal"): journal}
