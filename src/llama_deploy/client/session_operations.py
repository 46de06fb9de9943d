"""Operations on sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from llama_deploy.client.operation import Operation, call, exchange, parse, segment
from llama_deploy.client.payload_encoding import encode_json_object
from llama_deploy.errors import InternalServerError, InvalidRequestError
from llama_deploy.types import (
    SessionDefinition,
    SessionOptions,
    SessionPolicy,
    SessionState,
    TaskDefinition,
)
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.web.http_connection import HttpAnswer, HttpRequest

_PAGE: Final = 1000

_SESSION_ID: Final = TypeAdapter(str)
_SESSION: Final = TypeAdapter(SessionDefinition)
_SESSIONS: Final = TypeAdapter(dict[str, SessionDefinition])
_TASK: Final = TypeAdapter[TaskDefinition | None](TaskDefinition | None)
_STATE: Final = TypeAdapter(dict[str, Any])
_NOTHING: Final = TypeAdapter[Any](Any)


def create(*, session_id: str | None, policy: SessionPolicy | str) -> Operation[str]:
    """Create a session and return its id. An id that exists already names that session.

    Raises:
        InvalidRequestError: An id or policy that cannot be.
    """
    try:
        options = SessionOptions(session_id=session_id, policy=SessionPolicy(policy))
    except ValidationError as exc:
        raise InvalidRequestError(f"no session can have {describe_validation_error(exc)}") from exc
    except ValueError as exc:
        known = ", ".join(SessionPolicy)
        raise InvalidRequestError(f"{policy!r} is no session policy; there are: {known}") from exc
    return call(HttpRequest("POST", "/sessions/create", json=options), _SESSION_ID)


def read(session_id: str) -> Operation[SessionDefinition]:
    """Return the session.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    return call(HttpRequest("GET", _path(session_id)), _SESSION)


def list_all() -> Operation[list[SessionDefinition]]:
    """Return the sessions, ordered by id; one request for each thousand."""
    found: list[SessionDefinition] = []
    while True:
        after = found[-1].session_id if found else ""
        params: dict[str, str | int] = {"after": after, "limit": _PAGE}
        page = yield from call(HttpRequest("GET", "/sessions", params=params), _SESSIONS)
        found.extend(page[session_id] for session_id in sorted(page))
        if len(page) < _PAGE:
            return found


def delete(session_id: str) -> Operation[Any]:
    """Delete the session with its tasks.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    return call(HttpRequest("POST", _path(session_id) + "/delete"), _NOTHING)


def current_task(session_id: str) -> Operation[TaskDefinition | None]:
    """Return the session's last task, None if it has none.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    return call(HttpRequest("GET", _path(session_id) + "/current_task"), _TASK)


def get_state(session_id: str) -> Operation[SessionState]:
    """Return the session's state and its version.

    Raises:
        SessionNotFoundError: There is no such session.
    """
    request = HttpRequest("GET", _path(session_id) + "/state")
    return _versioned((yield from exchange(request)), request)


def update_state(session_id: str, changes: Mapping[str, Any]) -> Operation[SessionState]:
    """Merge the keys of `changes` into the session's state and return the whole with its new version.

    Raises:
        SessionNotFoundError: There is no such session.
        SerializationError: A value cannot be carried as JSON.
    """
    request = HttpRequest("POST", _path(session_id) + "/state", json=encode_json_object(changes))
    return _versioned((yield from exchange(request)), request)


def set_state(session_id: str, state: Mapping[str, Any], *, version: int) -> Operation[SessionState]:
    """Replace the session's state if it still has `version`, and return the new one.

    Raises:
        SessionNotFoundError: There is no such session.
        StateConflictError: Somebody else wrote first.
        SerializationError: A value cannot be carried as JSON.
    """
    request = HttpRequest(
        "PUT",
        _path(session_id) + "/state",
        json=encode_json_object(state),
        headers={"If-Match": f'"{version}"'},
    )
    return _versioned((yield from exchange(request)), request)


def _versioned(answer: HttpAnswer, request: HttpRequest) -> SessionState:
    tag = answer.headers.get("etag", "").strip('"')
    if not tag.isdecimal():
        raise InternalServerError(f"{request.path} was answered without the state's version in `ETag`")
    return SessionState(state=parse(answer.value, _STATE, source=request.path), version=int(tag))


def _path(session_id: str) -> str:
    return f"/sessions/{segment(session_id)}"
