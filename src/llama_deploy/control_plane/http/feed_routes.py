"""Routes of feeds."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from pydantic import Field
from starlette.responses import StreamingResponse

from llama_deploy.control_plane.http.feed_responses import feed_lines, server_sent_feed
from llama_deploy.control_plane.http.stream_responses import NDJSON, SERVER_SENT
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.streams.feed_cursor import FeedFilter
from llama_deploy.types import TaskStatus
from llama_deploy.types.feeds import FeedItem
from llama_deploy.types.keys import Key
from llama_deploy.web.application import PROBLEM
from llama_deploy.web.edge.access import new_router
from llama_deploy.web.edge.access_table import CONTROL_PLANE_ACCESS
from llama_deploy.web.edge.caller_state import owner_of

Names = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]],
    Query(max_length=50, description="Only tasks of this service. Repeat it for several."),
]
Statuses = Annotated[
    list[TaskStatus],
    Query(max_length=20, description="Only changes to this status. Repeat it for several."),
]
Cursor = Annotated[
    str | None,
    Query(max_length=100, description="A cursor that the feed has sent. Without one, from now on."),
]
LastCursor = Annotated[
    str | None,
    Header(alias="Last-Event-ID", max_length=100, description="For server-sent events, in place of `after`."),
]
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["task", "deleted", "event", "cursor"]},
        "data": {"type": "string", "description": "JSON: the value of this field of a `FeedItem`."},
    },
    "required": ["event", "data"],
}
"""A server-sent event as an object of its fields."""
_FEEDS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Changes as they occur: server-sent events, or one JSON object per line if the request"
        " accepts `application/x-ndjson` only.",
        "content": {
            SERVER_SENT: {"schema": _MESSAGE},
            NDJSON: {"schema": FeedItem.model_json_schema()},
        },
    },
    410: {
        **PROBLEM,
        "description": "The cursor is too old: read the list of tasks, and the feed without a cursor.",
    },
}


def feed_routes(plane: ControlPlane) -> APIRouter:
    """Return the route `/events`."""
    router = new_router(CONTROL_PLANE_ACCESS, plane.owned_rows, tags=["tasks"])

    @router.get(
        "/events",
        summary="Stream changes of tasks as they occur, and their events if requested",
        response_class=StreamingResponse,
        responses=_FEEDS,
    )
    async def get_feed(
        request: Request,
        service: Names = [],  # noqa: B006 - FastAPI copies it
        session: Annotated[Key | None, Query(description="Only tasks of this session.")] = None,
        status: Statuses = [],  # noqa: B006 - as above
        after: Cursor = None,
        stream: Annotated[bool, Query(description="Also the events of the tasks.")] = False,  # noqa: FBT002
        wait: Annotated[
            float | None,
            Query(ge=0, le=86_400, description="Seconds after which the feed ends. Without it, it does not."),
        ] = None,
        last_event_id: LastCursor = None,
    ) -> StreamingResponse:
        wanted = FeedFilter(frozenset(service), session, frozenset(status), owner_of(request.scope))
        parts = await plane.feeds.open(
            wanted, after=last_event_id or after, stream=stream, wait=math.inf if wait is None else wait
        )
        accept = request.headers.get("accept", "")
        is_lines = NDJSON in accept.lower() and SERVER_SENT not in accept.lower()
        return feed_lines(parts) if is_lines else server_sent_feed(parts)

    return router
