"""A whole system in one process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from workflows import Workflow

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.deploy.core import open_queue
from llama_deploy.deploy.together import end
from llama_deploy.message_queues import AbstractMessageQueue, MessageQueueConfig, SimpleMessageQueueConfig
from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
from llama_deploy.services import WorkflowService, WorkflowServiceConfig


@dataclass(frozen=True, slots=True)
class HostedWorkflow:
    """A workflow and the settings of the service that hosts it."""

    workflow: Workflow
    config: WorkflowServiceConfig

    @classmethod
    def named(
        cls, service_name: str, workflow: Workflow, *, max_concurrent_tasks: int | None = None
    ) -> HostedWorkflow:
        """Return a workflow with the usual settings; the first line of its docstring describes it.

        Args:
            service_name: The name under which clients call it.
            workflow: Any workflow.
            max_concurrent_tasks: How many tasks an instance works on at a time. None: from the environment or
                the default, as all other settings.
        """
        chosen: dict[str, Any] = (
            {} if max_concurrent_tasks is None else {"max_concurrent_tasks": max_concurrent_tasks}
        )
        config = WorkflowServiceConfig(
            host="127.0.0.1",
            port=0,
            service_name=service_name,
            description=_first_line(type(workflow)),
            **chosen,
        )
        return cls(workflow, config)


def _first_line(cls: type[Workflow]) -> str:
    """Return what a class says of itself; what its bases say of themselves is of no use here."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return text.partition("\n")[0]


class LocalStack:
    """A control plane, services and a simple queue, unless there is a broker, in this process.

    `await LocalStack.start(...)`, then `close` it. The services reach queue and control plane by calls and
    listen on no port of their own. Queue and control plane listen too, for clients and for instances in
    other processes.
    """

    def __init__(
        self,
        *,
        control_plane: ControlPlaneServer,
        message_queue: AbstractMessageQueue,
        services: Sequence[WorkflowService],
        parts: Sequence[asyncio.Task[None]],
        resources: AsyncExitStack,
    ) -> None:
        self.control_plane = control_plane
        """Its `config` has the real port."""
        self.message_queue = message_queue
        """Its `as_config()` tells other processes how to reach it."""
        self.services = list(services)
        """One instance of each hosted workflow, in the given order."""
        self._parts = list(parts)
        self._resources = resources

    @classmethod
    async def start(
        cls,
        workflows: Sequence[HostedWorkflow],
        *,
        control_plane_config: ControlPlaneConfig | None = None,
        message_queue_config: MessageQueueConfig | None = None,
        orchestrator_config: SimpleOrchestratorConfig | None = None,
    ) -> LocalStack:
        """Start everything; returns when the services work on tasks.

        Args:
            workflows: What to host; may be empty.
            control_plane_config: Settings of the control plane. Port 0 lets the system choose.
            message_queue_config: Settings of the queue. A simple one runs here, and port 0 lets the system
                choose; a broker of another kind runs by itself. None: a simple queue.
            orchestrator_config: Settings of the orchestrator.

        Raises:
            ConfigError: A setting cannot work, or an address cannot be bound.
            UnavailableError: The broker or the database does not answer.
            StoreLockedError: Another control plane works on the store.
            InvalidRequestError: A service cannot have its name.
        """
        config = control_plane_config or ControlPlaneConfig()
        async with AsyncExitStack() as stack:
            queue = await open_queue(
                stack, message_queue_config or SimpleMessageQueueConfig(), also_reached_as=config.host
            )
            control_plane = await stack.enter_async_context(
                ControlPlaneServer(queue, orchestrator=SimpleOrchestrator(orchestrator_config), config=config)
            )
            watching = asyncio.create_task(control_plane.plane.run())
            stack.push_async_callback(end, [watching])
            gateway = control_plane.gateway()
            services = [
                WorkflowService(hosted.workflow, queue, hosted.config, gateway=gateway)
                for hosted in workflows
            ]
            running: list[asyncio.Task[None]] = []
            # Services drain first, while queue and control plane are there to take what they report.
            stack.push_async_callback(end, running)
            for service in services:
                running.append(await service.launch_local())
                await service.register_to_control_plane()
            return cls(
                control_plane=control_plane,
                message_queue=queue,
                services=services,
                parts=[watching, *running],
                resources=stack.pop_all(),
            )

    @property
    def control_plane_url(self) -> str:
        """Where clients and further instances find the control plane."""
        return self.control_plane.config.url

    @property
    def message_queue_url(self) -> str:
        """Where instances in other processes find the queue; the control plane tells them."""
        return self.message_queue.as_config().address

    async def run(self) -> None:
        """Wait until a part fails, and raise its error. Cancel it to stop waiting; then `close`."""
        done, _ = await asyncio.wait(self._parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def close(self) -> None:
        """Drain the services, then stop the control plane and the queue. Idempotent; deletes nothing.

        Cancelling it makes the services hand back at once what is under way; everything is closed even so.
        """
        resources, self._resources = self._resources, AsyncExitStack()
        await resources.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
