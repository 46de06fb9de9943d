"""Operations on the API server and what it deploys."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, Field, TypeAdapter
from urllib3.filepost import encode_multipart_formdata

from llama_deploy.client.event_streams import ObjectStream
from llama_deploy.client.operation import Operation, call, segment
from llama_deploy.errors import UnavailableError
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult
from llama_deploy.web.http_connection import HttpRequest


class ApiServerCondition(StrEnum):
    """How an API server does."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"
    """It answers, and says that something is wrong."""
    DOWN = "Down"
    """It does not answer."""


class ApiServerStatus(BaseModel):
    """What an API server says of itself."""

    status: ApiServerCondition
    status_message: str = ""
    deployments: list[str] | None = None
    """Names of what is deployed."""


class DeploymentDefinition(BaseModel):
    """A deployment as the API server lists it."""

    name: str = Field(min_length=1)


_STATUS: Final = TypeAdapter(ApiServerStatus)
_DEPLOYMENT: Final = TypeAdapter(DeploymentDefinition)
_DEPLOYMENTS: Final = TypeAdapter(list[DeploymentDefinition])
_TASK: Final = TypeAdapter(TaskDefinition)
_TASKS: Final = TypeAdapter(list[TaskDefinition])
_RESULT: Final = TypeAdapter(TaskResult)
_SESSION: Final = TypeAdapter(SessionDefinition)
_SESSIONS: Final = TypeAdapter(list[SessionDefinition])
_ANYTHING: Final = TypeAdapter[Any](Any)


def status() -> Operation[ApiServerStatus]:
    """Return the API server's status; one that cannot be reached is `DOWN`."""
    try:
        return (yield from call(HttpRequest("GET", "/status/"), _STATUS))
    except UnavailableError as exc:
        return ApiServerStatus(status=ApiServerCondition.DOWN, status_message=str(exc))


def create(file: bytes, *, reload: bool, timeout: float) -> Operation[DeploymentDefinition]:
    """Deploy what a YAML file describes; with `reload`, in place of a deployment of the same name."""
    body, content_type = encode_multipart_formdata(
        {"config_file": ("deployment.yaml", file, "application/yaml")}
    )
    request = HttpRequest(
        "POST",
        "/deployments/create",
        params={"reload": "true" if reload else "false"},
        content=body,
        headers={"Content-Type": content_type},
        timeout=timeout,
    )
    return call(request, _DEPLOYMENT)


def read(name: str) -> Operation[DeploymentDefinition]:
    """Return a deployment."""
    return call(HttpRequest("GET", _path(name)), _DEPLOYMENT)


def list_all() -> Operation[list[DeploymentDefinition]]:
    """Return the deployments."""
    return call(HttpRequest("GET", "/deployments/"), _DEPLOYMENTS)


def run_task(name: str, definition: TaskDefinition, *, timeout: float) -> Operation[Any]:
    """Run a task to its end and return its result.

    Raises:
        TaskFailedError, TaskCancelledError: It ended otherwise than by success.
    """
    return call(
        HttpRequest(
            "POST",
            _path(name) + "/tasks/run",
            params=_in_session(definition.session_id),
            json=definition,
            timeout=timeout,
        ),
        _ANYTHING,
    )


def create_task(name: str, definition: TaskDefinition) -> Operation[TaskDefinition]:
    """Have a task accepted and return it with its session."""
    path = _path(name) + "/tasks/create"
    request = HttpRequest("POST", path, params=_in_session(definition.session_id), json=definition)
    return call(request, _TASK)


def list_tasks(name: str) -> Operation[list[TaskDefinition]]:
    """Return the deployment's tasks."""
    return call(HttpRequest("GET", _path(name) + "/tasks"), _TASKS)


def task_results(name: str, task: TaskDefinition) -> Operation[TaskResult]:
    """Return how a task ended."""
    path = f"{_task_path(name, task)}/results"
    return call(HttpRequest("GET", path, params=_in_session(task.session_id)), _RESULT)


def task_events(name: str, task: TaskDefinition) -> ObjectStream:
    """Read the data of a task's events."""
    path = f"{_task_path(name, task)}/events"
    return ObjectStream(HttpRequest("GET", path, params=_in_session(task.session_id)))


def send_event(name: str, task: TaskDefinition, event: EventDefinition) -> Operation[EventDefinition]:
    """Send an event to a task."""
    path = f"{_task_path(name, task)}/events"
    request = HttpRequest("POST", path, params=_in_session(task.session_id), json=event)
    return call(request, TypeAdapter(EventDefinition))


def create_session(name: str) -> Operation[SessionDefinition]:
    """Create a session."""
    return call(HttpRequest("POST", _path(name) + "/sessions/create"), _SESSION)


def list_sessions(name: str) -> Operation[list[SessionDefinition]]:
    """Return the deployment's sessions."""
    return call(HttpRequest("GET", _path(name) + "/sessions"), _SESSIONS)


def delete_session(name: str, session_id: str) -> Operation[Any]:
    """Delete a session."""
    path = _path(name) + "/sessions/delete"
    return call(HttpRequest("POST", path, params=_in_session(session_id)), _ANYTHING)


def _path(name: str) -> str:
    return f"/deployments/{segment(name)}"


def _task_path(name: str, task: TaskDefinition) -> str:
    return f"{_path(name)}/tasks/{segment(task.task_id)}"


def _in_session(session_id: str | None) -> dict[str, str]:
    return {} if session_id is None else {"session_id": session_id}
