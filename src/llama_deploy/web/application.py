"""The FastAPI application that every server of ours starts from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llama_deploy.errors import InvalidRequestError, LlamaDeployError
from llama_deploy.types.validation import describe_findings
from llama_deploy.web.problems import MEDIA_TYPE, TYPE_PREFIX
from llama_deploy.web.responses import problem_response, unexpected_response

UNEXPECTED_FORM: Final = "the request is not of the expected form"
"""How the error begins that refuses a body or a query."""


class Problem(BaseModel):
    """Problem details after RFC 9457; further members are the attributes of the error."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(pattern=f"^{TYPE_PREFIX}")
    title: str
    status: int = Field(ge=400, le=599)
    """The status of the response."""
    detail: str
    """What happened, with which value, and what to do next."""


PROBLEM: Final[dict[str, Any]] = {
    "description": "Problem details",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
"""How an OpenAPI document describes a response with an error."""


class _Application(FastAPI):
    """The document of a framework knows models of one media type only, so the model of problems is added."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault(Problem.__name__, Problem.model_json_schema())
        return document


def create_app(
    *,
    title: str,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    unknown_path: LlamaDeployError | None = None,
) -> FastAPI:
    """Return an application that answers errors with problem details. Serve it behind `build_edge`.

    Args:
        title: Shown in its OpenAPI document.
        lifespan: What to run around the application's life.
        unknown_path: What a request for a path that does not exist gets. None: an error without a type.
    """
    app = _Application(
        title=title,
        lifespan=lifespan,
        responses={"4XX": PROBLEM, "5XX": PROBLEM},
        # Of releases that trace requests: four spans for each heartbeat, in a trace of its own.
        telemetry={"tracing": False},
    )
    app.exception_handler(LlamaDeployError)(_on_own_error)
    app.exception_handler(RequestValidationError)(_on_validation_error)
    app.exception_handler(HTTPException)(_on_http_exception)
    if unknown_path is not None:
        app.exception_handler(HTTPStatus.NOT_FOUND)(partial(_on_unknown_path, unknown_path))
    app.exception_handler(Exception)(_on_unexpected_error)
    return app


async def _on_own_error(_request: Request, exc: LlamaDeployError) -> Response:
    return problem_response(exc)


async def _on_validation_error(_request: Request, exc: RequestValidationError) -> Response:
    return problem_response(InvalidRequestError(f"{UNEXPECTED_FORM}: {describe_findings(exc.errors())}"))


async def _on_unknown_path(error: LlamaDeployError, _request: Request, _exc: HTTPException) -> Response:
    return problem_response(error)


async def _on_http_exception(_request: Request, exc: HTTPException) -> Response:
    """Answer what the framework itself refuses, such as an unknown path, in the same form."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + "http",
        "title": exc.detail,
        "status": exc.status_code,
        "detail": exc.detail,
    }
    return JSONResponse(body, status_code=exc.status_code, media_type=MEDIA_TYPE, headers=exc.headers)


async def _on_unexpected_error(request: Request, exc: Exception) -> Response:
    return unexpected_response(request.method, request.url.path, exc)
