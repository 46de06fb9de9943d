"""Feeds as responses: server-sent events, or one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

from starlette.responses import StreamingResponse

from llama_deploy.control_plane.http.stream_responses import (
    NDJSON,
    RETRY,
    SERVER_SENT,
    SERVER_SENT_HEADERS,
    event_json,
    pieces,
)
from llama_deploy.control_plane.requests.tasks.feed_requests import (
    DeletedTask,
    FeedPart,
    FeedPosition,
    FeedStream,
)
from llama_deploy.control_plane.streams.task_feed import Change
from llama_deploy.errors import UnavailableError
from llama_deploy.types.keys import public_id


def feed_lines(parts: FeedStream) -> StreamingResponse:
    """Return a response with one `FeedItem` per line."""
    return StreamingResponse(pieces(_until_outage(parts), _line, keep_alive=b"\n"), media_type=NDJSON)


def server_sent_feed(parts: FeedStream) -> StreamingResponse:
    """Return a response of server-sent events, whose types are the fields of `FeedItem`.

    Only a `cursor` has an id, so a browser resumes where everything was told.
    """
    body = pieces(_until_outage(parts), _message, keep_alive=b": keep-alive\n\n", first=RETRY)
    return StreamingResponse(body, media_type=SERVER_SENT, headers=SERVER_SENT_HEADERS)


async def _until_outage(parts: FeedStream) -> AsyncIterator[list[FeedPart]]:
    """End the response if the store does not answer: the reader resumes from its cursor."""
    try:
        async for group in parts:
            if group:
                yield group
            del group
    except UnavailableError:
        return


def _line(part: FeedPart) -> Sequence[str]:
    match part:
        case Change():
            return [f'{{"task":{part.text}}}\n']
        case DeletedTask():
            return [f'{{"deleted":{_shown(part.task_id)}}}\n']
        case FeedPosition():
            return [f'{{"cursor":"{part.cursor}"}}\n']
        case _:
            return event_json(part, '{"event":{' + f'"task_id":{_shown(part.task_id)},', "}\n")


def _message(part: FeedPart) -> Sequence[str]:
    match part:
        case Change():
            return [f"event: task\ndata: {part.text}\n\n"]
        case DeletedTask():
            return [f"event: deleted\ndata: {_shown(part.task_id)}\n\n"]
        case FeedPosition():
            return [f'id: {part.cursor}\nevent: cursor\ndata: "{part.cursor}"\n\n']
        case _:
            return event_json(part, "event: event\ndata: {" + f'"task_id":{_shown(part.task_id)},', "\n\n")


def _shown(task_id: str) -> str:
    return json.dumps(public_id(task_id))
