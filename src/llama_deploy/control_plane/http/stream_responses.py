"""Event streams as responses: one JSON object per line, or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeVar

from starlette.responses import StreamingResponse

from llama_deploy.control_plane.requests.tasks.stream_requests import FilteredStream
from llama_deploy.control_plane.requests.tasks.task_requests import EventStream
from llama_deploy.control_plane.streams.event_filter import FilteredItem, Passed
from llama_deploy.errors import EventsExpiredError, TaskNotFoundError
from llama_deploy.state_stores.records import EventRecord
from llama_deploy.types import NewAttempt

NDJSON: Final = "application/x-ndjson"
SERVER_SENT: Final = "text/event-stream"
SERVER_SENT_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must neither store the events nor collect them."""
RETRY: Final = b"retry: 1000\n\n"
"""After how many milliseconds a browser connects again."""
_PIECE_CHARACTERS: Final = 64 * 1024

I = TypeVar("I")  # noqa: E741 - an item


def event_response(events: FilteredStream, *, cursors: bool) -> StreamingResponse:
    """Return a response with one `TaskEvent`, `StreamedAttempt` or `StreamCursor` per line.

    An empty line is a keep-alive.

    Args:
        events: The events.
        cursors: Whether a `StreamCursor` tells how far the reader has come without events for it.
    """
    lines = pieces(events, _line if cursors else _line_without_cursors, keep_alive=b"\n")
    return StreamingResponse(lines, media_type=NDJSON)


def server_sent_response(events: FilteredStream) -> StreamingResponse:
    """Return a response of server-sent events, as the HTML standard defines them.

    Each `TaskEvent` has its index as id, so a browser resumes after it. A new attempt is an event of the type
    `attempt` without an id. An id alone tells how far the reader has come without events for it. A comment is
    a keep-alive.
    """
    parts = pieces(events, _message, keep_alive=b": keep-alive\n\n", first=RETRY)
    return StreamingResponse(parts, media_type=SERVER_SENT, headers=SERVER_SENT_HEADERS)


def data_response(events: EventStream) -> StreamingResponse:
    """Return a response with the data of one event per line, as 0.6 did."""
    return StreamingResponse(pieces(events, _data_line, keep_alive=b""), media_type=NDJSON)


async def pieces(
    groups: AsyncIterator[Sequence[I]],
    texts: Callable[[I], Sequence[str]],
    *,
    keep_alive: bytes,
    first: bytes = b"",
) -> AsyncIterator[bytes]:
    """Yield the items in pieces of a limited size: so little of a page is encoded at a time."""
    if first:
        yield first
    try:
        async for group in groups:
            if not group:
                yield keep_alive
            for piece in _cut(chain.from_iterable(map(texts, group))):
                yield piece.encode()
            del group  # before the next page is read
    except (TaskNotFoundError, EventsExpiredError):
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


def _line_without_cursors(item: FilteredItem) -> Sequence[str]:
    return () if isinstance(item, Passed) else _line(item)


def _line(item: FilteredItem) -> Sequence[str]:
    if isinstance(item, Passed):
        return [f'{{"cursor":{item.position}}}\n']
    if isinstance(item, NewAttempt):
        return [f'{{"new_attempt":{item.model_dump_json()}}}\n']
    return event_json(item, "{", "\n")


def _message(item: FilteredItem) -> Sequence[str]:
    if isinstance(item, Passed):
        return [f"id: {item.position}\n\n"]
    if isinstance(item, NewAttempt):
        return [f"event: attempt\ndata: {item.model_dump_json()}\n\n"]
    return event_json(item, f"id: {item.position}\ndata: {{", "\n\n")


def event_json(event: EventRecord, before: str, after: str) -> Sequence[str]:
    """Return a `TaskEvent` as JSON without line breaks, between two texts. Its data is JSON already.

    Args:
        event: The event.
        before: Ends with the bracket of the object, and perhaps fields of it.
        after: Follows the object.
    """
    terminal = "true" if event.terminal else "false"
    attempt = "null" if event.attempt is None else event.attempt
    step_run = "null" if event.step_run is None else event.step_run
    return _around(
        event.data,
        f'{before}"index":{event.position},"type":{json.dumps(event.type)},"data":',
        f',"terminal":{terminal},"attempt":{attempt},"step_run":{step_run}}}{after}',
    )


def _around(data: str, before: str, after: str) -> Sequence[str]:
    """Return data between two texts; large data is not copied."""
    return [before, data, after] if len(data) > _PIECE_CHARACTERS else [f"{before}{data}{after}"]
