"""One instance of a workflow service, joined to a control plane elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workflows import Workflow

from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy.readiness import connect_queue, until_available
from llama_deploy.deploy.termination import drained_on_sigterm
from llama_deploy.deploy.together import run_together
from llama_deploy.message_queues import MessageQueueConfig
from llama_deploy.services import WorkflowService, WorkflowServiceConfig
from llama_deploy.web.connection_settings import Address, ConnectionSettings


async def deploy_workflow(
    workflow: Workflow,
    workflow_config: WorkflowServiceConfig,
    control_plane_config: ControlPlaneConfig | None = None,
    message_queue_config: MessageQueueConfig | None = None,
    *,
    connection: ConnectionSettings | None = None,
) -> None:
    """Run a workflow as a service until cancelled; then drain: end or hand back what is under way.

    Waits until the control plane answers, learns from it which message queue to use, unless that is given,
    and registers. SIGTERM drains too, and ends the process after it.

    Args:
        workflow: Any workflow.
        workflow_config: Settings of the service.
        control_plane_config: Says where the control plane is. None: from the environment and the defaults.
        message_queue_config: The control plane's queue, with the credentials that it does not tell. None: as
            it tells, and the credentials from the environment.
        connection: How to reach the control plane: the URLs of its replicas, headers, certificates. None: the
            URL of `control_plane_config`, and nothing else.

    Raises:
        ConfigError: A setting cannot work, the address cannot be bound, or the server is not a control plane.
        Exception: What a part raised that failed.
    """
    control_plane = connection or (control_plane_config or ControlPlaneConfig()).url
    with drained_on_sigterm():
        await run_workflow(
            workflow,
            workflow_config,
            control_plane_url=control_plane,
            message_queue_config=message_queue_config,
        )


async def run_workflow(
    workflow: Workflow,
    config: WorkflowServiceConfig,
    *,
    control_plane_url: Address,
    message_queue_config: MessageQueueConfig | None = None,
    on_ready: Callable[[WorkflowService], None] | None = None,
) -> None:
    """Like `deploy_workflow`, without a signal handler; a second cancellation hands back at once.

    Args:
        workflow: Any workflow.
        config: Settings of the service. Port 0 lets the system choose.
        control_plane_url: Such as `http://127.0.0.1:8000`, the URLs of its replicas, or settings.
        message_queue_config: As for `deploy_workflow`.
        on_ready: Called once, with the service, when it works on tasks.

    Raises:
        ConfigError: As `deploy_workflow`.
        Exception: What a part raised that failed.
    """
    async with await connect_queue(control_plane_url, message_queue_config) as queue:
        service = WorkflowService(workflow, queue, config)

        async def register() -> None:
            await service.wait_listening()
            await until_available(
                lambda: service.register_to_control_plane(control_plane_url),
                action=f"registering service {service.service_name}",
            )
            if on_ready is not None:
                on_ready(service)
            # The service runs on; its end ends this too.
            await asyncio.Event().wait()

        await run_together(service.launch_server(), register())
