"""The few routes that every task passes, answered before the framework: docs/decisions/0008-shortcuts.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import InvalidRequestError, LlamaDeployError
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.application import UNEXPECTED_FORM
from llama_deploy.web.responses import problem_response, unexpected_response

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to one of the routes, its body read."""

    rest: str
    """What follows the route's path, unquoted; empty for a route without a slash at its end."""
    query: bytes
    body: bytes
    receive: Receive
    """Returns when the client disconnects."""

    def read_body(self, form: TypeAdapter[T]) -> T:
        """Return the JSON body.

        Raises:
            InvalidRequestError: It is not JSON or not of this form.
        """
        try:
            return form.validate_json(self.body)
        except ValidationError as exc:
            raise InvalidRequestError(f"{UNEXPECTED_FORM}: body: {describe_validation_error(exc)}") from exc

    def read_query(self, form: type[M]) -> M:
        """Return the query.

        Raises:
            InvalidRequestError: It is not of this form.
        """
        try:
            return form.model_validate(dict(parse_qsl(self.query.decode("latin-1"), keep_blank_values=True)))
        except ValidationError as exc:
            raise InvalidRequestError(f"{UNEXPECTED_FORM}: query: {describe_validation_error(exc)}") from exc


Endpoint: TypeAlias = Callable[[Call], Awaitable[bytes | None]]
"""Answers with encoded JSON, or None for 204; what it raises becomes problem details."""
Routes: TypeAlias = Mapping[tuple[str, str], Endpoint]
"""Endpoints by method and path. A path of one segment and a slash stands for all paths that begin with it."""


class Shortcuts:
    """Answers `routes` itself and leaves all other requests to `app`: the innermost layer of the edge.

    Args:
        app: The application, which has and documents the same routes.
        routes: The shortcuts.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = dict(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method, path = scope["method"], scope["path"]
        endpoint, rest = self._routes.get((method, path)), ""
        if endpoint is None:
            start = path.find("/", 1) + 1
            endpoint, rest = self._routes.get((method, path[:start])), path[start:]
        if endpoint is None:
            await self._app(scope, receive, send)
        else:
            await _answer(endpoint, rest, scope, receive, send)


async def _answer(endpoint: Endpoint, rest: str, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await _read(receive)
        if body is None:
            return  # the client has disconnected
        answer = await endpoint(Call(rest, scope["query_string"], body, receive))
    except LlamaDeployError as exc:
        await problem_response(exc)(scope, receive, send)
    except Exception as exc:  # noqa: BLE001 - the boundary of the request
        await unexpected_response(scope["method"], scope["path"], exc)(scope, receive, send)
    else:
        await _send(answer, send)


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request, None if the client has disconnected."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _send(answer: bytes | None, send: Send) -> None:
    # A new message for every answer: outer layers may add headers to it.
    if answer is None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
    else:
        length = str(len(answer)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer or b""})
