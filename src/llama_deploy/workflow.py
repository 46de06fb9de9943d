"""What a step can learn of the task for which it runs, and how it calls other services.

Example:
    ```python
    from llama_deploy.workflow import ServiceClient, TaskInfo
    from workflows import Workflow, step
    from workflows.events import StartEvent, StopEvent


    class Report(Workflow):
        @step
        async def write(self, ev: StartEvent, task: TaskInfo, client: ServiceClient) -> StopEvent:
            facts = await client.run("research", topic=ev.topic)
            return StopEvent(result=f"{facts} (task {task.task_id}, attempt {task.attempt})")
    ```
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from workflows.resource import Resource

from llama_deploy.client import Client
from llama_deploy.errors import ConfigError
from llama_deploy.running_task import TaskInfo as _TaskInfo
from llama_deploy.running_task import running_task
from llama_deploy.services.values.task_progress import TaskProgress
from llama_deploy.web.connection_settings import ConnectionSettings
from llama_deploy.web.serving_control_plane import serving_control_plane
from llama_deploy.web.step_clients import ClientOrigin

__all__ = ["ServiceClient", "TaskInfo", "TaskProgress", "current_task"]


def current_task() -> _TaskInfo | None:
    """Return the task for which the present context runs: a step, or what it calls. None: there is none."""
    return running_task.get()


def _task_info() -> _TaskInfo:
    task = current_task()
    if task is None:
        raise ConfigError(
            "there is no task: `TaskInfo` is known only in runs of a service; call `current_task()`, which"
            " returns None elsewhere"
        )
    return task


def _service_client() -> Client:
    serving = serving_control_plane.get()
    return Client() if serving is None else serving.open(_shared)


def _shared(settings: ConnectionSettings) -> Client:
    """Return a client that all steps of an instance share, so it belongs to none of their tasks."""
    return ClientOrigin(serving_control_plane.get(), None).create(lambda: _connected(settings))


def _connected(settings: ConnectionSettings) -> Client:
    return Client(
        settings.urls,
        headers=settings.headers,
        ca=settings.ca,
        client_certificate=settings.client_certificate,
        disable_ssl=not settings.verify_tls,
    )


TaskInfo: TypeAlias = Annotated[_TaskInfo, Resource(_task_info, cache=False)]
"""The task for which a step runs, as a parameter of the step; see `llama_deploy.running_task.TaskInfo`.

In a run without a service, the step fails with `ConfigError`.
"""

ServiceClient: TypeAlias = Annotated[Client, Resource(_service_client, cache=False)]
"""A client of the control plane that has sent the task, as a parameter of a step. Do not close it.

All steps of an instance share it. It acts for the task whose step uses it, so it fails with `ConfigError` in
a new thread without the context of the step: start threads with `asyncio.to_thread`, or create a `Client()`
in the step and pass it on. In a run without a service it is `Client()`. A step that runs again after
the death of its process submits again; pass `task_id=` with an id made from the task's to get the first one.
"""
