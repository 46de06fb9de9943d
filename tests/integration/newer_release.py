"""What a newer release would send: everything that this one sends, with unknown fields in every object."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import pydantic_core
from pydantic import BaseModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llama_deploy.message_queues import SimpleMessageQueue
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.types import ServiceDefinition, TaskSubmission, TaskView
from llama_deploy.types.instance_protocol import (
    AttemptEvents,
    AttemptOutcome,
    ClaimReply,
    ClaimRequest,
    Heartbeat,
    HeartbeatReply,
    InboxEntry,
    JournalReply,
    JournalWrite,
    ReleaseReply,
    ReleaseRequest,
    TaskCancellation,
    TaskDispatch,
)
from llama_deploy.types.services import Registration
from llama_deploy.web.http_connection import HttpConnection
from llama_deploy.web.http_exchange import HttpRequest
from llama_deploy.web.http_server import HttpServer

UNKNOWN: Final = "a_field_of_a_newer_release"
DATA: Final[Mapping[ActionTypes, type[BaseModel]]] = {
    ActionTypes.NEW_TASK: TaskDispatch,
    ActionTypes.SEND_EVENT: InboxEntry,
    ActionTypes.CANCEL_TASK: TaskCancellation,
    ActionTypes.TASK_STREAM: AttemptEvents,
    ActionTypes.COMPLETED_TASK: AttemptOutcome,
}
ROUTES: Final[Mapping[str, tuple[Any, Any]]] = {
    "/services/register": (ServiceDefinition, Registration),
    "/instances/heartbeat": (Heartbeat, HeartbeatReply),
    "/attempts/claim": (list[ClaimRequest], list[ClaimReply]),
    "/attempts/journal": (list[JournalWrite], list[JournalReply]),
    "/attempts/release": (list[ReleaseRequest], list[ReleaseReply]),
    "/attempts/report": (QueueMessage, None),
    "/tasks": (TaskSubmission, TaskView),
}
"""The models of bodies and answers."""


def newer(model: Any, value: Any) -> Any:
    """Return JSON of a model with an unknown field in each object that is a model."""
    schema = TypeAdapter(model).json_schema()
    return _added(schema, value, schema.get("$defs", {}))


def _added(schema: dict[str, Any], value: Any, definitions: dict[str, Any]) -> Any:
    while "$ref" in schema or ("anyOf" in schema and value is not None):
        options = schema.get("anyOf", [schema])
        schema = next(each for each in options if each != {"type": "null"})
        schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if isinstance(value, list) and "items" in schema:
        return [_added(schema["items"], item, definitions) for item in value]
    if isinstance(value, dict) and "properties" in schema:
        fields = {
            name: _added(schema["properties"].get(name, {}), item, definitions)
            for name, item in value.items()
        }
        return {**fields, UNKNOWN: {"nested": [1]}}
    return value


def newer_message(message: QueueMessage) -> QueueMessage:
    """Return a message with unknown fields, also in its data."""
    wire = newer(QueueMessage, message.to_wire())
    if message.action is not None:
        wire["data"] = newer(DATA[message.action], message.data)
    return QueueMessage.from_wire(wire)


class NewerQueue(SimpleMessageQueue):
    """The simple queue as a newer release publishes to it."""

    async def _publish(self, message: QueueMessage, topic: str) -> None:
        await super()._publish(newer_message(message), topic)


class NewerSide:
    """Stands before a control plane, and makes requests or answers those of a newer release.

    Args:
        url: That of the control plane.
        requests: Whether whoever sends requests is newer.
        answers: Whether the control plane is.
    """

    def __init__(self, url: str, *, requests: bool, answers: bool) -> None:
        self._connection = HttpConnection(url)
        self._requests = requests
        self._answers = answers
        self.changed: Counter[str] = Counter()
        """How many requests and answers have got unknown fields, by route."""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve, and give the URL."""
        async with await HttpServer.start(self, host="127.0.0.1", port=0) as server:
            yield f"http://127.0.0.1:{server.port}"
        await self._connection.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.url.path
        body_model, answer_model = ROUTES.get(path, (None, None))
        body = await request.body()
        if self._requests:
            body = self._change(path, body_model, body)
        names = ("content-type", "llamadeploy-protocol")
        status, answer = await self._connection.send(
            HttpRequest(
                request.method,
                f"{path}?{request.url.query}" if request.url.query else path,
                content=body or None,
                headers={name: value for name, value in request.headers.items() if name in names},
                timeout=60,
            )
        )
        if self._answers and status < 300:
            answer = self._change(path, answer_model, answer)
        await Response(answer, status_code=status, media_type="application/json")(scope, receive, send)

    def _change(self, path: str, model: Any, body: bytes) -> bytes:
        if model is None or not body:
            return body
        self.changed[path] += 1
        return pydantic_core.to_json(newer(model, pydantic_core.from_json(body)))
