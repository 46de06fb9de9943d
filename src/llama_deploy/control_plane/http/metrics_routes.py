"""Routes for monitoring: the metrics, and the backlog of a service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeAlias
from urllib.parse import unquote

from fastapi import APIRouter, Path
from pydantic import BeforeValidator
from starlette.responses import Response

from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.measures import process_text
from llama_deploy.metric_texts import CONTENT_TYPE, METRICS_PATH, merged
from llama_deploy.types.services import ServiceBacklog, ServiceName
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS

_NameInPath = Annotated[ServiceName, BeforeValidator(unquote), Path()]

MetricSource: TypeAlias = Callable[[], Awaitable[str]]
"""Returns the metrics of another part of this process, or of its children, in Prometheus' text format."""


def metrics_routes(plane: ControlPlane, sources: Sequence[MetricSource] = ()) -> APIRouter:
    """Return `/metrics`, and `/services/{service_name}/backlog`.

    Args:
        plane: The control plane.
        sources: Further metrics to show.
    """
    router = new_router(CONTROL_PLANE_ACCESS, tags=["monitoring"])

    @router.get(
        METRICS_PATH,
        summary="Get metrics, in the text format of Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        texts = [await plane.metrics.text(), process_text(), *[await source() for source in sources]]
        whole = await asyncio.to_thread(merged, [(text, {}) for text in texts])
        return Response(whole, media_type=CONTENT_TYPE)

    @router.get(
        "/services/{service_name}/backlog",
        summary="Get how much work waits for a service; zeros if there is no such service yet",
    )
    async def backlog(service_name: _NameInPath) -> ServiceBacklog:
        return await plane.backlogs.of(service_name)

    return router
