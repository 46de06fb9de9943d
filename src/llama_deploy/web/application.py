"""The FastAPI application that every server of ours starts from."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.errors import (
    InternalServerError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
)
from llama_deploy.types.validation import describe_findings, describe_validation_error
from llama_deploy.web.problems import MEDIA_TYPE, TYPE_PREFIX, headers_of, status_of, to_problem

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_NOT_OF_THE_FORM: Final = "the request is not of the expected form"
DEFAULT_MAX_BODY_BYTES: Final = 4 * 1024 * 1024


class Problem(BaseModel):
    """Problem details after RFC 9457; further members are the facts of the error."""

    type: str
    title: str
    status: int
    detail: str


def create_app(
    *,
    title: str,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """Return an application that answers errors with problem details and refuses oversized bodies.

    Args:
        title: Shown in its OpenAPI document.
        max_body_bytes: The most bytes of a request body; more is answered with 413.
        lifespan: What to run around the application's life.
    """
    app = FastAPI(
        title=title,
        lifespan=lifespan,
        responses={"4XX": {"model": Problem, "description": "Problem details", "content": {MEDIA_TYPE: {}}}},
    )
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    app.add_exception_handler(LlamaDeployError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected_error)
    return app


def add_shortcut(
    app: FastAPI, method: str, path: str, endpoint: Callable[[Request], Awaitable[Response]]
) -> None:
    """Let `endpoint` answer a route that the application has and documents, without the framework's work.

    For the few routes that every task passes: looking a route up, resolving its arguments and validating its
    answer takes most of a short request's time; see docs/decisions/0008-shortcuts.md.
    """
    app.router.routes.insert(0, Route(path, endpoint, methods=[method]))


async def read_body(request: Request, form: TypeAdapter[T]) -> T:
    """Return the JSON body of a request.

    Raises:
        InvalidRequestError: It is not JSON or not of this form.
    """
    try:
        return form.validate_json(await request.body())
    except ValidationError as exc:
        raise InvalidRequestError(f"{_NOT_OF_THE_FORM}: body: {describe_validation_error(exc)}") from exc


def read_query(request: Request, form: type[M]) -> M:
    """Return the query of a request.

    Raises:
        InvalidRequestError: It is not of this form.
    """
    try:
        return form.model_validate(dict(request.query_params))
    except ValidationError as exc:
        raise InvalidRequestError(f"{_NOT_OF_THE_FORM}: query: {describe_validation_error(exc)}") from exc


def json_response(content: bytes | str) -> Response:
    """Return a response with encoded JSON."""
    return Response(content, media_type="application/json")


def problem_response(error: LlamaDeployError) -> Response:
    """Return the response that tells of `error`."""
    # What a client sent may stand in the error, even text that is not UTF-8.
    content = json.dumps(to_problem(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, status_code=status_of(error), media_type=MEDIA_TYPE, headers=headers_of(error))


async def _on_own_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, LlamaDeployError):
        raise exc
    return problem_response(exc)


async def _on_validation_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, RequestValidationError):
        raise exc
    return problem_response(InvalidRequestError(f"{_NOT_OF_THE_FORM}: {describe_findings(exc.errors())}"))


async def _on_http_exception(_request: Request, exc: Exception) -> Response:
    """Answer what the framework itself refuses, such as an unknown path, in the same form."""
    if not isinstance(exc, HTTPException):
        raise exc
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + "http",
        "title": exc.detail,
        "status": exc.status_code,
        "detail": exc.detail,
    }
    return JSONResponse(body, status_code=exc.status_code, media_type=MEDIA_TYPE, headers=exc.headers)


async def _on_unexpected_error(request: Request, exc: Exception) -> Response:
    logger.error(
        "%s %s failed", request.method, request.url.path, exc_info=exc, extra={"action": "http_error"}
    )
    return problem_response(InternalServerError(f"{type(exc).__name__} in the server; see its log"))


class BodyLimit:
    """ASGI middleware that refuses request bodies above a limit, declared or streamed."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > self._limit:
            await problem_response(self._error())(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._error()
            return message

        await self._app(scope, limited, send)

    def _error(self) -> PayloadTooLargeError:
        return PayloadTooLargeError(
            f"the request body is larger than {self._limit} bytes; send less, or raise max_body_bytes",
            limit_bytes=self._limit,
        )
