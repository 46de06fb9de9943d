"""The few routes that every task passes, answered before the framework: docs/decisions/0008-shortcuts.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_deploy.errors import InvalidRequestError, LlamaDeployError
from llama_deploy.types.validation import describe_findings
from llama_deploy.web.application import UNEXPECTED_FORM
from llama_deploy.web.edge.access import check_access
from llama_deploy.web.edge.access_table import Requirement
from llama_deploy.web.edge.body_budget import RELEASE_BODY
from llama_deploy.web.edge.caller_state import caller_of
from llama_deploy.web.responses import problem_response, unexpected_response

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_SHORT_QUERY: Final = 512
"""How many bytes a query may have to be remembered."""


@dataclass(slots=True)
class Call:
    """A request to one of the routes, its body read."""

    rest: str
    """What follows the route's path, unquoted; empty for a route without a slash at its end."""
    scope: Scope
    body: bytes
    receive: Receive
    """Returns when the client disconnects."""
    on_release: Callable[[], None] | None = None
    """Called when the body is not used any more. None: it is small."""

    @property
    def is_large(self) -> bool:
        """Whether the body takes room that others may wait for."""
        return self.on_release is not None

    def release_body(self) -> None:
        """Let go of the body, before something that takes long."""
        self.body = b""
        if self.on_release is not None:
            self.on_release()

    def read_body(self, form: TypeAdapter[T]) -> T:
        """Return the JSON body.

        Raises:
            InvalidRequestError: It is not JSON or not of this form.
        """
        try:
            return form.validate_json(self.body)
        except ValidationError as exc:
            raise _unexpected("body", exc) from exc

    def read_query(self, form: type[M]) -> M:
        """Return the query.

        Raises:
            InvalidRequestError: It is not of this form.
        """
        query = self.scope["query_string"]
        read = _read_query if len(query) <= _SHORT_QUERY else _read_query.__wrapped__
        try:
            return cast("M", read(form, query))
        except ValidationError as exc:
            raise _unexpected("query", exc) from exc


def _unexpected(part: str, exc: ValidationError) -> InvalidRequestError:
    """Return the error for a part of a request, in the words of the application."""
    findings = ({**found, "loc": (part, *found["loc"])} for found in exc.errors())
    return InvalidRequestError(f"{UNEXPECTED_FORM}: {describe_findings(findings)}")


# Workers and clients repeat theirs with every task. What is returned is shared, so it must not be changed.
@lru_cache(maxsize=1024)
def _read_query(form: type[BaseModel], query: bytes) -> BaseModel:
    return form.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))


Endpoint: TypeAlias = Callable[[Call], Awaitable[bytes | None]]
"""Answers with encoded JSON, or None for 204; what it raises becomes problem details."""


@dataclass(frozen=True, slots=True)
class ForSome:
    """An endpoint for some of the requests with its method and path; the application answers the others."""

    answer: Endpoint
    takes: Callable[[Scope, str], bool]
    """Whether it answers a request, by its scope and what follows the route's path."""


Routes: TypeAlias = Mapping[tuple[str, str], Endpoint | ForSome]
"""Endpoints by method and path. A path of one segment and a slash stands for all paths that begin with it."""


class Shortcuts:
    """Answers `routes` itself and leaves all other requests to `app`: the innermost layer of the edge.

    Args:
        app: The application, which has and documents the same routes.
        routes: The shortcuts.
        needed: What callers need for each of them. Empty: they are not checked.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Routes,
        *,
        needed: Mapping[tuple[str, str], Requirement] = MappingProxyType({}),
    ) -> None:
        self._app = app
        self._routes = dict(routes)
        self._needed = needed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method, path = scope["method"], scope["path"]
        rest = ""
        endpoint = self._routes.get((method, path))
        if endpoint is None:
            start = path.find("/", 1) + 1
            path, rest = path[:start], path[start:]
            endpoint = self._routes.get((method, path))
        if isinstance(endpoint, ForSome):
            endpoint = endpoint.answer if endpoint.takes(scope, rest) else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        if self._needed:
            if not caller_of(scope).is_in_default_tenant:
                # Ids become keys between a documented route and its endpoint, and nowhere else.
                await self._app(scope, receive, send)
                return
            try:
                _check(scope, self._needed[method, path], method, path, rest)
            except LlamaDeployError as exc:
                await problem_response(exc)(scope, receive, send)
                return
        await _answer(endpoint, rest, scope, receive, send)


def _check(scope: Scope, needed: Requirement, method: str, path: str, rest: str) -> None:
    """Check the caller, who may have a token for the one thing that the path names.

    Raises:
        AuthenticationError: As `check_access`.
        PermissionDeniedError: As `check_access`.
    """
    if needed.resources:
        scope = {**scope, "path_params": dict.fromkeys(needed.resources.values(), rest)}
    check_access(scope, needed, method, path)


async def _answer(endpoint: Endpoint, rest: str, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await _read(receive)
        if body is None:
            return  # the client has disconnected
        call = Call(rest, scope, body, receive, scope.get(RELEASE_BODY))
        del body  # the call may release it
        answer = await endpoint(call)
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
