"""Errors over HTTP: problem details (RFC 9457). The only module that knows their status codes."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from llama_deploy import errors
from llama_deploy.errors import LlamaDeployError
from llama_deploy.web.shown_url import shown_url

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:llama-deploy:problem:"
"""A problem's `type` is this and the error's `code`."""

_CHALLENGE: Final = 'Bearer realm="llama_deploy"'

_TASK_STATUS: Final = "task_status"
"""The member for the status of a task, because `status` is that of the response."""

_STATUS: Final[dict[type[LlamaDeployError], HTTPStatus]] = {
    errors.InvalidHostError: HTTPStatus.BAD_REQUEST,
    errors.AuthenticationError: HTTPStatus.UNAUTHORIZED,
    errors.PermissionDeniedError: HTTPStatus.FORBIDDEN,
    errors.ClientCertificateError: HTTPStatus.FORBIDDEN,
    errors.UntrustedHostError: HTTPStatus.MISDIRECTED_REQUEST,
    errors.ForeignOriginError: HTTPStatus.FORBIDDEN,
    errors.UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.PayloadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.InvalidRequestError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ProtocolVersionError: HTTPStatus.BAD_REQUEST,
    errors.SerializationError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TaskRemovedError: HTTPStatus.GONE,
    errors.EventsExpiredError: HTTPStatus.GONE,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.CursorExpiredError: HTTPStatus.GONE,
    errors.StateConflictError: HTTPStatus.PRECONDITION_FAILED,
    errors.WrongServerError: HTTPStatus.NOT_FOUND,
    errors.ConflictError: HTTPStatus.CONFLICT,
    errors.OverloadedError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}


def _subclasses(cls: type[LlamaDeployError]) -> Iterator[type[LlamaDeployError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


_BY_CODE: Final = {
    cls.code: cls
    for cls in _subclasses(LlamaDeployError)
    # An error that shares its parent's code is sent as its parent.
    if cls.__module__ == errors.__name__ and "code" in vars(cls)
} | {LlamaDeployError.code: errors.InternalServerError}


def status_of(error: LlamaDeployError) -> HTTPStatus:
    """Return the HTTP status for an error."""
    for cls in type(error).__mro__:
        if cls in _STATUS:
            return _STATUS[cls]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def to_problem(error: LlamaDeployError) -> dict[str, Any]:
    """Return the problem details of an error: type, title, status, detail, and the error's facts."""
    status = status_of(error)
    facts = {name: _shown(value) for name, value in error.facts().items()}
    if "status" in facts:
        facts[_TASK_STATUS] = facts.pop("status")
    return {
        "type": TYPE_PREFIX + error.code,
        "title": status.phrase,
        "status": int(status),
        "detail": _shown(str(error)),
        **facts,
    }


def _shown(value: Any) -> Any:
    """Return a text of an error as clients may see it: with ids in place of the keys of a tenant."""
    from llama_deploy.types.keys import SEPARATOR  # noqa: PLC0415 - a supervisor, which reads problems, has no models

    if not isinstance(value, str) or SEPARATOR not in value:
        return value
    return re.sub(rf"[0-9A-Za-z._-]*{SEPARATOR}", "", value)


def headers_of(error: LlamaDeployError) -> dict[str, str]:
    """Return the headers for an error.

    These are `Retry-After`, in whole seconds, if it says when to try again, and `WWW-Authenticate` (RFC 6750)
    if it asks for a key.
    """
    if isinstance(error, errors.AuthenticationError):
        return {"WWW-Authenticate": _CHALLENGE}
    if isinstance(error, errors.PermissionDeniedError):
        return {"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope"'}
    if isinstance(error, errors.OverloadedError | errors.ServerBusyError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return {}


def from_problem(status: int, body: bytes, *, url: str) -> LlamaDeployError:
    """Return the error for a response with a status of 300 or more.

    A redirect is an `InternalServerError`, because our servers send none. A response without problem details,
    as from a proxy, is an `UnavailableError` for 502, 503 and 504, otherwise an `InternalServerError`.
    """
    url = shown_url(url)
    if status < HTTPStatus.BAD_REQUEST:
        return errors.InternalServerError(
            f"{url} answered {status}, a redirect, which is not followed; use the address it redirects to"
        )
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict) or not str(problem.get("type", "")).startswith(TYPE_PREFIX):
        text = f"{url} answered {status}: {body[:200].decode(errors='replace')}"
        if status in (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT):
            return errors.UnavailableError(text)
        return errors.InternalServerError(text)
    cls = _BY_CODE.get(str(problem["type"]).removeprefix(TYPE_PREFIX), errors.InternalServerError)
    accepted = inspect.signature(cls).parameters
    facts = {name: value for name, value in problem.items() if name in accepted and name != "status"}
    # A control plane of an earlier release has written the status of the task over that of the response.
    task_status = problem.get(_TASK_STATUS, problem.get("status"))
    if "status" in accepted and isinstance(task_status, str):
        facts["status"] = task_status
    return cls(str(problem.get("detail", "")), **facts)
