"""URL paths of what a client calls."""

from __future__ import annotations

from urllib.parse import quote

from llama_deploy.errors import InvalidRequestError


def service_path(service_name: str) -> str:
    """Return the path of a service."""
    return f"/services/{_quote(service_name)}"


def session_path(session_id: str) -> str:
    """Return the path of a session."""
    return f"/sessions/{_quote(session_id)}"


def task_path(task_id: str) -> str:
    """Return the path of a task."""
    return f"/tasks/{_quote(task_id)}"


def key_path(key_id: str) -> str:
    """Return the path of an API key."""
    return f"/keys/{_quote(key_id)}"


def question_path(question_id: str) -> str:
    """Return the path of a question."""
    return f"/inbox/{_quote(question_id)}"


def session_task_path(session_id: str, task_id: str) -> str:
    """Return the path of a task below its session, which the 0.6 routes use."""
    return session_path(session_id) + task_path(task_id)


def deployment_path(name: str) -> str:
    """Return the path of a deployment on the API server."""
    return f"/deployments/{_quote(name)}"


def _quote(text: str) -> str:
    if text in {".", ".."}:
        # A URL would lose it, and lead to something else.
        raise InvalidRequestError(f"{text!r} cannot be an id or a name; use another one")
    return quote(text, safe="")
