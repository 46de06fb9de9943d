"""Event streams as NDJSON responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import StreamingResponse

from llama_deploy.control_plane.requests.task_requests import EventStream
from llama_deploy.errors import TaskNotFoundError
from llama_deploy.state_stores.records import EventRecord

NDJSON: Final = "application/x-ndjson"


def event_response(events: EventStream) -> StreamingResponse:
    """Return a response with one `TaskEvent` per line. An empty line is a keep-alive."""
    return StreamingResponse(_lines(events), media_type=NDJSON)


def data_response(events: EventStream) -> StreamingResponse:
    """Return a response with the data of one event per line, as 0.6 did."""
    return StreamingResponse(_data_lines(events), media_type=NDJSON)


async def _lines(events: EventStream) -> AsyncIterator[bytes]:
    try:
        async for group in events:
            yield "".join(map(_line, group)).encode() if group else b"\n"
    except TaskNotFoundError:
        return  # deleted while it was read; the status line has been sent already


async def _data_lines(events: EventStream) -> AsyncIterator[bytes]:
    try:
        async for group in events:
            yield "".join(event.data + "\n" for event in group).encode()
    except TaskNotFoundError:
        return


def _line(event: EventRecord) -> str:
    """Return a `TaskEvent` as one line. Its data is JSON already."""
    terminal = "true" if event.terminal else "false"
    kind = json.dumps(event.type)
    return f'{{"index":{event.position},"type":{kind},"data":{event.data},"terminal":{terminal}}}\n'
