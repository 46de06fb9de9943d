"""A workflow that runs a service, as a step of a program in another process."""

from __future__ import annotations

import warnings
from typing import Any

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent

from llama_deploy.client import Client


class NetworkWorkflow(Workflow):
    """Runs a service of the control plane with its own run arguments, and returns its result as text.

    Args:
        remote_service_name: The service.
        control_plane_config: Deprecated and ignored: the control plane is that of `Client()`.
        **kwargs: Arguments of `Workflow`.
    """

    def __init__(
        self, remote_service_name: str, control_plane_config: object | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if control_plane_config is not None:
            warnings.warn(
                "control_plane_config is ignored; set LLAMA_DEPLOY_CONTROL_PLANE_URL instead",
                DeprecationWarning,
                stacklevel=2,
            )
        self.remote_service_name = remote_service_name

    @step
    async def run_remote_workflow(self, ev: StartEvent) -> StopEvent:
        """Run the service."""
        async with Client() as client:
            task = await client.submit(self.remote_service_name, arguments=ev.model_dump())
            await task.result()
            view = await task.info()
        return StopEvent(result="" if view.result is None else view.result.result)
