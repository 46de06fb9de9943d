"""The API server and its deployments."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, BinaryIO, Final, TextIO

from pydantic import BaseModel, TypeAdapter
from urllib3.filepost import encode_multipart_formdata

from llama_deploy.client.aio.server_api import ANYTHING, ServerApi
from llama_deploy.client.definitions import ApiServerCondition, ApiServerStatus, DeploymentDefinition
from llama_deploy.client.event_streams import ObjectStream
from llama_deploy.client.paths import deployment_path, task_path
from llama_deploy.client.payload_encoding import encode_event
from llama_deploy.errors import UnavailableError
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult
from llama_deploy.web.http_exchange import HttpRequest

_DEPLOYMENTS: Final = TypeAdapter(list[DeploymentDefinition]).validate_python
_TASKS: Final = TypeAdapter(list[TaskDefinition]).validate_python
_SESSIONS: Final = TypeAdapter(list[SessionDefinition]).validate_python


class ApiServer:
    """The API server: its `status` and its `deployments`."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api
        self.deployments = DeploymentCollection(api)

    async def status(self) -> ApiServerStatus:
        """Return the API server's status; `DOWN` if it cannot be reached."""
        try:
            return await self._api.call(HttpRequest("GET", "/status/"), ApiServerStatus.model_validate)
        except UnavailableError as exc:
            return ApiServerStatus(status=ApiServerCondition.DOWN, status_message=str(exc))


class DeploymentCollection:
    """The deployments on the API server."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    async def create(self, file: BinaryIO | TextIO, reload: bool = False) -> Deployment:  # noqa: FBT001, FBT002 - 0.6 API
        """Create a deployment from a YAML file.

        Args:
            file: The open file.
            reload: Replace the deployment of the same name.
        """
        text = file.read()
        content = text.encode() if isinstance(text, str) else text
        body, content_type = encode_multipart_formdata(
            {"config_file": ("deployment.yaml", content, "application/yaml")}
        )
        request = HttpRequest(
            "POST",
            "/deployments/create",
            params={"reload": "true" if reload else "false"},
            content=body,
            headers={"Content-Type": content_type},
            timeout=self._api.settings.timeout,
        )
        created = await self._api.call(request, DeploymentDefinition.model_validate)
        return Deployment(self._api, created.name)

    async def get(self, name: str) -> Deployment:
        """Return an existing deployment.

        Raises:
            NotFoundError: The deployment does not exist.
        """
        found = await self._api.get(deployment_path(name), DeploymentDefinition.model_validate)
        return Deployment(self._api, found.name)

    async def list(self) -> list[Deployment]:
        """Return the deployments."""
        found = await self._api.get("/deployments/", _DEPLOYMENTS)
        return [Deployment(self._api, definition.name) for definition in found]


class Deployment:
    """A deployment with its `tasks` and `sessions`."""

    def __init__(self, api: ServerApi, name: str) -> None:
        self.id = name
        """The deployment's name."""
        self.tasks = DeploymentTasks(api, name)
        self.sessions = DeploymentSessions(api, name)


class DeploymentTasks:
    """The tasks of a deployment."""

    def __init__(self, api: ServerApi, deployment: str) -> None:
        self._api = api
        self._deployment = deployment
        self._path = deployment_path(deployment) + "/tasks"

    async def run(self, task_def: TaskDefinition) -> Any:
        """Run a task within the client's `timeout` and return its result.

        Raises:
            TaskFailedError: The task failed or exceeded its time limit.
            TaskCancelledError: The task was cancelled.
        """
        request = HttpRequest(
            "POST",
            self._path + "/run",
            params=_session_param(task_def.session_id),
            json=task_def,
            timeout=self._api.settings.timeout,
        )
        return await self._api.call(request, ANYTHING)

    async def create(self, task_def: TaskDefinition) -> DeploymentTask:
        """Submit a task."""
        params = _session_param(task_def.session_id)
        path = self._path + "/create"
        task = await self._api.post(path, TaskDefinition.model_validate, json=task_def, **params)
        return DeploymentTask(self._api, self._deployment, task)

    async def list(self) -> list[DeploymentTask]:
        """Return the deployment's tasks."""
        found = await self._api.get(self._path, _TASKS)
        return [DeploymentTask(self._api, self._deployment, task) for task in found]


class DeploymentTask:
    """A task of a deployment."""

    def __init__(self, api: ServerApi, deployment: str, task: TaskDefinition) -> None:
        self._api = api
        self._path = deployment_path(deployment) + task_path(task.task_id)
        self._params = _session_param(task.session_id)
        self.id = task.task_id
        """The task's id."""
        self.session_id = task.session_id
        """The id of its session."""

    async def results(self) -> TaskResult:
        """Return the task's result."""
        return await self._api.get(self._path + "/results", TaskResult.model_validate, **self._params)

    def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield the data of the task's events as they arrive."""
        return self._api.read(ObjectStream(HttpRequest("GET", self._path + "/events", params=self._params)))

    async def send_event(self, ev: BaseModel, service_name: str) -> EventDefinition:
        """Send a workflow event to the task and return the event as it was sent."""
        event = encode_event(ev, service_name=service_name)
        path = self._path + "/events"
        return await self._api.post(path, EventDefinition.model_validate, json=event, **self._params)


class DeploymentSessions:
    """The sessions of a deployment."""

    def __init__(self, api: ServerApi, deployment: str) -> None:
        self._api = api
        self._path = deployment_path(deployment) + "/sessions"

    async def create(self) -> SessionDefinition:
        """Create a session."""
        return await self._api.post(self._path + "/create", SessionDefinition.model_validate)

    async def list(self) -> list[SessionDefinition]:
        """Return the deployment's sessions."""
        return await self._api.get(self._path, _SESSIONS)

    async def delete(self, id: str) -> None:  # noqa: A002 - 0.6 API
        """Delete a session."""
        await self._api.post(self._path + "/delete", ANYTHING, **_session_param(id))


def _session_param(session_id: str | None) -> dict[str, str]:
    return {} if session_id is None else {"session_id": session_id}
