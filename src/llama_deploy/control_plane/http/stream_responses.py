"""Event streams as responses: one JSON object per line, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain
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
_PIECE_CHARACTERS: Final = 64 * 1024

I = TypeVar("I")  # noqa: E741 - an item


def event_response(events: EventStream | AttemptStream) -> StreamingResponse:
    """Return a response with one `TaskEvent` or `StreamedAttempt` per line. An empty line is a keep-alive."""
    return StreamingResponse(_pieces(events, _line, keep_alive=b"\n"), media_type=NDJSON)


def server_sent_response(events: AttemptStream) -> StreamingResponse:
    """Return a response of server-sent events, as the HTML standard defines them.

    Each `TaskEvent` has its index as id, so a browser resumes after it. A new attempt is an event of the type
    `attempt` without an id. A comment is a keep-alive.
    """
    parts = _pieces(events, _message, keep_alive=b": keep-alive\n\n")
    return StreamingResponse(parts, media_type=SERVER_SENT, headers=_SERVER_SENT_HEADERS)


def data_response(events: EventStream) -> StreamingResponse:
    """Return a response with the data of one event per line, as 0.6 did."""
    return StreamingResponse(_pieces(events, _data_line, keep_alive=b""), media_type=NDJSON)


async def _pieces(
    groups: AsyncIterator[Sequence[I]], texts: Callable[[I], Sequence[str]], *, keep_alive: bytes
) -> AsyncIterator[bytes]:
    """Yield the items in pieces of a limited size: so little of a page is encoded at a time."""
    try:
        async for group in groups:
            if not group:
                yield keep_alive
            for piece in _cut(chain.from_iterable(map(texts, group))):
                yield piece.encode()
            del group  # before the next page is read
    except TaskNotFoundError:
        return  # deleted while it was read; the status line has been sent already


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """Yield the same text in pieces of limited size, and as few as that takes."""
    short: list[str] = []
    size = 0
    for text in texts:
        if short and size + len(text) > _PIECE_CHARACTERS:
            yield "".join(short)
            short, size = [], 0
        if len(text) > _PIECE_CHARACTERS:
            for start in range(0, len(text), _PIECE_CHARACTERS):
                yield text[start : start + _PIECE_CHARACTERS]
        else:
            short.append(text)
            size += len(text)
    if short:
        yield "".join(short)


def _data_line(event: EventRecord) -> Sequence[str]:
    return _around(event.data, "", "\n")


def _line(item: StreamItem) -> Sequence[str]:
    if isinstance(item, NewAttempt):
        return [f'{{"new_attempt":{item.model_dump_json()}}}\n']
    return _event(item, "", "\n")


def _message(item: StreamItem) -> Sequence[str]:
    if isinstance(item, NewAttempt):
        return [f"event: attempt\ndata: {item.model_dump_json()}\n\n"]
    return _event(item, f"id: {item.position}\ndata: ", "\n\n")


def _event(event: EventRecord, before: str, after: str) -> Sequence[str]:
    """Return a `TaskEvent` as JSON without line breaks, between two texts. Its data is JSON already."""
    terminal = "true" if event.terminal else "false"
    attempt = "null" if event.attempt is None else event.attempt
    step_run = "null" if event.step_run is None else event.step_run
    return _around(
        event.data,
        f'{before}{{"index":{event.position},"type":{json.dumps(event.type)},"data":',
        f',"terminal":{terminal},"attempt":{attempt},"step_run":{step_run}}}{after}',
    )


def _around(data: str, before: str, after: str) -> Sequence[str]:
    """Return data between two texts; large data is not copied."""
    return [before, data, after] if len(data) > _PIECE_CHARACTERS else [f"{before}{data}{after}"]
