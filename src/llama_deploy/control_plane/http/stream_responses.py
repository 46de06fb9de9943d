"""Event streams as responses: one JSON object per line, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

from starlette.responses import StreamingResponse

from llama_deploy.control_plane.requests.task_requests import AttemptStream, EventStream
from llama_deploy.control_plane.streams.attempt_markers import StreamItem
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import NewAttempt

NDJSON: Final = "application/x-ndjson"
SERVER_SENT: Final = "text/event-stream"
_SERVER_SENT_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must neither store the events nor collect them."""

I = TypeVar("I")  # noqa: E741 - an item


def event_response(events: EventStream | AttemptStream) -> StreamingResponse:
    """Return a response with one `TaskEvent` or `StreamedAttempt` per line. An empty line is a keep-alive."""
    return StreamingResponse(_parts(events, _line, keep_alive=b"\n"), media_type=NDJSON)


def server_sent_response(events: AttemptStream) -> StreamingResponse:
    """Return a response of server-sent events, as the HTML standard defines them.

    Each `TaskEvent` has its index as id, so a browser resumes after it. A new attempt is an event of the type
    `attempt` without an id. A comment is a keep-alive.
    """
    parts = _parts(events, _message, keep_alive=b": keep-alive\n\n")
    return StreamingResponse(parts, media_type=SERVER_SENT, headers=_SERVER_SENT_HEADERS)


def data_response(events: EventStream) -> StreamingResponse:
    """Return a response with the data of one event per line, as 0.6 did."""
    return StreamingResponse(_parts(events, _data_line, keep_alive=b""), media_type=NDJSON)


async def _parts(
    groups: AsyncIterator[Sequence[I]], part: Callable[[I], str], *, keep_alive: bytes
) -> AsyncIterator[bytes]:
    try:
        async for group in groups:
            yield "".join(map(part, group)).encode() if group else keep_alive
    except TaskNotFoundError:
        return  # deleted while it was read; the status line has been sent already


def _data_line(event: EventRecord) -> str:
    return event.data + "\n"


def _line(item: StreamItem) -> str:
    if isinstance(item, NewAttempt):
        return f'{{"new_attempt":{item.model_dump_json()}}}\n'
    return _event(item) + "\n"


def _message(item: StreamItem) -> str:
    if isinstance(item, NewAttempt):
        return f"event: attempt\ndata: {item.model_dump_json()}\n\n"
    return f"id: {item.position}\ndata: {_event(item)}\n\n"


def _event(event: EventRecord) -> str:
    """Return a `TaskEvent` as JSON without line breaks. Its data is JSON already."""
    terminal = "true" if event.terminal else "false"
    attempt = "null" if event.attempt is None else event.attempt
    step_run = "null" if event.step_run is None else event.step_run
    return (
        f'{{"index":{event.position},"type":{json.dumps(event.type)},"data":{event.data},'
        f'"terminal":{terminal},"attempt":{attempt},"step_run":{step_run}}}'
    )
