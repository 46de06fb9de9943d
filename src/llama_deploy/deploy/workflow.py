"""Run one instance of a workflow service for a control plane in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from llama_deploy.client import ClientSettings
from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.control_plane import ControlPlaneConfig
from llama_deploy.deploy.garbage import seldom_collecting
from llama_deploy.deploy.readiness import connect_queue, until_available
from llama_deploy.deploy.termination import stopped_by_signals
from llama_deploy.deploy.together import run_together
from llama_deploy.message_queues import MessageQueueConfig
from llama_deploy.services import AnyWorkflow, WorkflowService, WorkflowServiceConfig
from llama_deploy.services.run.workflow_factory import WorkflowFactory
from llama_deploy.services.supervised_gateway import SupervisedGateway
from llama_deploy.supervisor.link import SupervisorLink
from llama_deploy.web.connection_settings import Address, ConnectionSettings


@ends_quietly
async def deploy_workflow(
    workflow: AnyWorkflow,
    workflow_config: WorkflowServiceConfig,
    control_plane_config: ControlPlaneConfig | None = None,
    message_queue_config: MessageQueueConfig | None = None,
    *,
    connection: ConnectionSettings | None = None,
) -> None:
    """Run a workflow as a service until cancelled, then drain: finish running tasks or release them.

    Waits until the control plane answers, gets the settings of the message queue from it unless they are
    given, and registers. SIGTERM drains too, and then ends the process, `drain_timeout` and 2 s later at the
    latest.

    Args:
        workflow: A workflow class, or a function without arguments that returns a new workflow: each run has
            an object of its own. Or an instance, which all runs share.
        workflow_config: Settings of the service.
        control_plane_config: Has the URL of the control plane. None: from the environment and the defaults.
        message_queue_config: The control plane's queue, with credentials, which the control plane does not
            send. None: its settings, and credentials from the environment.
        connection: How to reach the control plane: the URLs of its replicas, headers, certificates. None: the
            URL of `control_plane_config`, with the key, headers and certificate authorities that a `Client`
            takes from the environment, such as `LLAMA_DEPLOY_API_KEY`.

    Raises:
        ConfigError: A setting cannot work, the class or function does not return a workflow, the address
            cannot be bound, or the server is not a control plane.
        Exception: The error of the part that failed.
    """
    if connection is None:
        connection = ClientSettings().connect_to((control_plane_config or ControlPlaneConfig()).url)
    with stopped_by_signals(workflow_config.drain_timeout), seldom_collecting():
        await run_workflow(
            workflow,
            workflow_config,
            control_plane_url=connection,
            message_queue_config=message_queue_config,
        )


async def run_workflow(
    workflow: AnyWorkflow,
    config: WorkflowServiceConfig,
    *,
    control_plane_url: Address,
    message_queue_config: MessageQueueConfig | None = None,
    on_ready: Callable[[WorkflowService], None] | None = None,
    link: SupervisorLink | None = None,
) -> None:
    """Like `deploy_workflow`, without a signal handler. A second cancellation releases tasks at once.

    Args:
        workflow: As for `deploy_workflow`.
        config: Settings of the service. With port 0 the system chooses one.
        control_plane_url: Such as `http://127.0.0.1:8000`, the URLs of its replicas, or settings.
        message_queue_config: As for `deploy_workflow`.
        on_ready: Called once, with the service, when it accepts tasks.
        link: The link to the supervisor of this process. None: it has none.

    Raises:
        ConfigError: As `deploy_workflow`.
        Exception: The error of the part that failed.
    """
    workflow = WorkflowFactory.of(workflow)  # before anything is waited for
    gateway = None
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(await connect_queue(control_plane_url, message_queue_config))
        if link is not None:
            gateway = SupervisedGateway(
                ConnectionSettings.of(control_plane_url), link, queue_problem=lambda: queue.problem
            )
            stack.push_async_callback(gateway.close)
        service = WorkflowService(
            workflow,
            queue,
            config,
            gateway=gateway,
            trail=None if link is None else link.trail,
            alone=link is not None and link.place.alone is not None,
        )

        async def register() -> None:
            await service.wait_listening()
            await until_available(
                lambda: service.register_to_control_plane(None if gateway else control_plane_url),
                action=f"registering service {service.service_name}",
            )
            if on_ready is not None:
                on_ready(service)
            # The service runs on; its end ends this too.
            await asyncio.Event().wait()

        await run_together(service.launch_server(), register())
