"""The API server and its deployments, as 0.6 programs use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, TextIO

from pydantic import BaseModel

from llama_deploy.client import deployment_operations as deployments
from llama_deploy.client.deployment_operations import ApiServerStatus
from llama_deploy.client.payload_encoding import encode_event
from llama_deploy.client.sync.driver import Driver
from llama_deploy.types import EventDefinition, SessionDefinition, TaskDefinition, TaskResult


class ApiServer:
    """What the API server offers: its `status` and its `deployments`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.deployments = DeploymentCollection(driver)

    def status(self) -> ApiServerStatus:
        """Return the API server's status; one that cannot be reached is `DOWN`."""
        return self._driver.run(deployments.status())


class DeploymentCollection:
    """What is deployed on the API server."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def create(self, file: BinaryIO | TextIO, reload: bool = False) -> Deployment:  # noqa: FBT001, FBT002 - 0.6 API
        """Deploy what a YAML file describes.

        Args:
            file: The open file.
            reload: Replace a deployment of the same name.
        """
        text = file.read()
        content = text.encode() if isinstance(text, str) else text
        operation = deployments.create(content, reload=reload, timeout=self._driver.settings.timeout)
        return Deployment(self._driver, self._driver.run(operation).name)

    def get(self, name: str) -> Deployment:
        """Return a deployment that exists.

        Raises:
            NotFoundError: There is no such deployment.
        """
        return Deployment(self._driver, self._driver.run(deployments.read(name)).name)

    def list(self) -> list[Deployment]:
        """Return the deployments."""
        found = self._driver.run(deployments.list_all())
        return [Deployment(self._driver, definition.name) for definition in found]


class Deployment:
    """A deployment with its `tasks` and `sessions`."""

    def __init__(self, driver: Driver, name: str) -> None:
        self.id = name
        """The deployment's name."""
        self.tasks = DeploymentTasks(driver, name)
        self.sessions = DeploymentSessions(driver, name)


class DeploymentTasks:
    """The tasks of a deployment."""

    def __init__(self, driver: Driver, deployment: str) -> None:
        self._driver = driver
        self._deployment = deployment

    def run(self, task_def: TaskDefinition) -> Any:
        """Run a task to its end, within the client's `timeout`, and return its result.

        Raises:
            TaskFailedError, TaskCancelledError: It ended otherwise than by success.
        """
        timeout = self._driver.settings.timeout
        return self._driver.run(deployments.run_task(self._deployment, task_def, timeout=timeout))

    def create(self, task_def: TaskDefinition) -> DeploymentTask:
        """Have a task accepted."""
        created = self._driver.run(deployments.create_task(self._deployment, task_def))
        return DeploymentTask(self._driver, self._deployment, created)

    def list(self) -> list[DeploymentTask]:
        """Return the deployment's tasks."""
        found = self._driver.run(deployments.list_tasks(self._deployment))
        return [DeploymentTask(self._driver, self._deployment, task) for task in found]


class DeploymentTask:
    """A task of a deployment."""

    def __init__(self, driver: Driver, deployment: str, task: TaskDefinition) -> None:
        self._driver = driver
        self._deployment = deployment
        self._task = task
        self.id = task.task_id
        """The task's id."""
        self.session_id = task.session_id
        """The id of its session."""

    def results(self) -> TaskResult:
        """Return how the task ended."""
        return self._driver.run(deployments.task_results(self._deployment, self._task))

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the data of the task's events as they come."""
        return self._driver.read(deployments.task_events(self._deployment, self._task))

    def send_event(self, ev: BaseModel, service_name: str) -> EventDefinition:
        """Send a workflow event to the task and return it as it was sent."""
        event = encode_event(ev, service_name=service_name)
        return self._driver.run(deployments.send_event(self._deployment, self._task, event))


class DeploymentSessions:
    """The sessions of a deployment."""

    def __init__(self, driver: Driver, deployment: str) -> None:
        self._driver = driver
        self._deployment = deployment

    def create(self) -> SessionDefinition:
        """Create a session."""
        return self._driver.run(deployments.create_session(self._deployment))

    def list(self) -> list[SessionDefinition]:
        """Return the deployment's sessions."""
        return self._driver.run(deployments.list_sessions(self._deployment))

    def delete(self, id: str) -> None:  # noqa: A002 - 0.6 API
        """Delete a session."""
        self._driver.run(deployments.delete_session(self._deployment, id))
