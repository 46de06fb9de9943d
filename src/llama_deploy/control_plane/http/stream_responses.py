"""Event streams as NDJSON responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.responses import StreamingResponse

from llama_deploy.control_plane.requests.task_requests import EventStream
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.state_stores.records import EventRecord

NDJSON: Final = "application/x-ndjson"


def event_response(events: EventStream) -> StreamingResponse:
    """Return a response with one `TaskEvent` per line. An empty line is a keep-alive."""
    return StreamingResponse(_lines(events, _line, keep_alive=b"\n"), media_type=NDJSON)


def data_response(events: EventStream) -> StreamingResponse:
    """Return a response with the data of one event per line, as 0.6 did."""
    return StreamingResponse(_lines(events, _data_line, keep_alive=b""), media_type=NDJSON)


async def _lines(
    events: EventStream, line: Callable[[EventRecord], str], *, keep_alive: bytes
) -> AsyncIterator[bytes]:
    try:
        async for group in events:
            yield "".join(map(line, group)).encode() if group else keep_alive
    except TaskNotFoundError:
        return  # deleted while it was read; the status line has been sent already


def _data_line(event: EventRecord) -> str:
    return event.data + "\n"


def _line(event: EventRecord) -> str:
    """Return a `TaskEvent` as one line. Its data is JSON already."""
    terminal = "true" if event.terminal else "false"
    kind = json.dumps(event.type)
    return f'{{"index":{event.position},"type":{kind},"data":{event.data},"terminal":{terminal}}}\n'
