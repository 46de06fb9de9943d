"""The FastAPI application that every server of ours starts from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama_deploy.errors import (
    InternalServerError,
    InvalidRequestError,
    LlamaDeployError,
    PayloadTooLargeError,
)
from llama_deploy.types.validation import describe_findings
from llama_deploy.web.problems import MEDIA_TYPE, TYPE_PREFIX, headers_of, status_of, to_problem

logger = logging.getLogger(__name__)

NOT_OF_THE_FORM: Final = "the request is not of the expected form"
"""How the text begins that refuses a body or a query."""
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


def json_response(content: bytes | str) -> Response:
    """Return a response with encoded JSON."""
    return Response(content, media_type="application/json")


def problem_response(error: LlamaDeployError) -> Response:
    """Return the response that tells of `error`."""
    # What a client sent may stand in the error, even text that is not UTF-8.
    content = json.dumps(to_problem(error), ensure_ascii=False).encode(errors="replace")
    return Response(content, status_code=status_of(error), media_type=MEDIA_TYPE, headers=headers_of(error))


def unexpected_response(method: str, path: str, error: Exception) -> Response:
    """Log an error that should not be, and return the response that tells of it."""
    logger.error("%s %s failed", method, path, exc_info=error, extra={"action": "http_error"})
    return problem_response(InternalServerError(f"{type(error).__name__} in the server; see its log"))


async def _on_own_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, LlamaDeployError):
        raise exc
    return problem_response(exc)


async def _on_validation_error(_request: Request, exc: Exception) -> Response:
    if not isinstance(exc, RequestValidationError):
        raise exc
    return problem_response(InvalidRequestError(f"{NOT_OF_THE_FORM}: {describe_findings(exc.errors())}"))


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
    return unexpected_response(request.method, request.url.path, exc)


def limit_body(scope: Scope, receive: Receive, *, max_body_bytes: int) -> Receive:
    """Return a `receive` that refuses to give more bytes of a request's body than that.

    Raises:
        PayloadTooLargeError: The request says that it has more. The returned callable raises it too.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if declared.isdigit() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_body_bytes:
            raise _too_large(max_body_bytes)
        return message

    return limited


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the request body is larger than {limit} bytes; send less, or raise max_body_bytes",
        limit_bytes=limit,
    )


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
        try:
            limited = limit_body(scope, receive, max_body_bytes=self._limit)
        except PayloadTooLargeError as exc:
            await problem_response(exc)(scope, receive, send)
        else:
            await self._app(scope, limited, send)
