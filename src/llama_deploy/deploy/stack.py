"""Control plane, queue and services in one process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from workflows import Workflow

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.control_plane.http.metrics_routes import MetricSource
from llama_deploy.control_plane.readiness import HealthCheck
from llama_deploy.deploy.core import open_callers, open_queue
from llama_deploy.errors import UnavailableError
from llama_deploy.health import is_healthy, summary
from llama_deploy.message_queues import AbstractMessageQueue, MessageQueueConfig, SimpleMessageQueueConfig
from llama_deploy.metric_texts import merged
from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
from llama_deploy.services import AnyWorkflow, WorkflowService, WorkflowServiceConfig
from llama_deploy.services.background import end
from llama_deploy.services.run.workflow_factory import WorkflowFactory
from llama_deploy.web.connection_settings import ClientCertificate
from llama_deploy.web.server_tls import TlsFiles


@dataclass(frozen=True, slots=True)
class HostedWorkflow:
    """A workflow and the settings of the service that hosts it."""

    workflow: AnyWorkflow
    """A workflow class, or a function without arguments that returns a new workflow: each run has an object
    of its own. Or an instance, which all runs share."""
    config: WorkflowServiceConfig

    @classmethod
    def named(
        cls,
        service_name: str,
        workflow: AnyWorkflow,
        *,
        max_concurrent_tasks: int | None = None,
        allowed_types: Sequence[str] | None = None,
        tls: TlsFiles | None = None,
    ) -> HostedWorkflow:
        """Return a workflow with default settings. The first line of its class's docstring describes it.

        Args:
            service_name: The name under which clients call it.
            workflow: See `HostedWorkflow.workflow`.
            max_concurrent_tasks: How many tasks an instance runs at a time. None: from the environment or the
                default, like all other settings.
            allowed_types: Names of further classes, see `WorkflowServiceConfig`. None: from the environment.
            tls: The certificate of its HTTP server. None: from the environment, or none.

        Raises:
            ConfigError: The class or function does not return a workflow.
        """
        source = WorkflowFactory.of(workflow)
        described = source.first if isinstance(source, WorkflowFactory) else source
        options = {"max_concurrent_tasks": max_concurrent_tasks, "allowed_types": allowed_types}
        chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        chosen |= {} if tls is None else tls.settings
        config = WorkflowServiceConfig(
            host="127.0.0.1",
            port=0,
            service_name=service_name,
            description=_first_line(type(described)),
            **chosen,
        )
        return cls(source, config)


def _first_line(cls: type[Workflow]) -> str:
    """Return the first line of a class's own docstring; that of a base class would not describe it."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return text.partition("\n")[0]


async def _metrics_of(services: Sequence[WorkflowService]) -> str:
    return merged((service.metrics_text(), {}) for service in services)


async def _check_services(services: Sequence[WorkflowService], count: int) -> None:
    """Check that all services work on tasks.

    Raises:
        UnavailableError: One does not.
    """
    if len(services) < count:
        raise UnavailableError("not all services were started yet")
    for service in services:
        checks = service.health_checks()
        if not is_healthy(checks):
            raise UnavailableError(f"service {service.service_name}: {summary(checks)}")


@dataclass(slots=True, eq=False)
class LocalStack:
    """A control plane, services, and a simple queue unless another broker is used, in this process.

    `await LocalStack.start(...)`, then `close` it. The services call queue and control plane directly and
    open no ports. Queue and control plane also listen, for clients and for instances in other processes.
    """

    control_plane: ControlPlaneServer
    """Its `config` has the real port."""
    message_queue: AbstractMessageQueue
    """Its `as_config()` holds the settings for other processes."""
    services: list[WorkflowService]
    """One instance of each hosted workflow, in the given order."""
    _parts: list[asyncio.Task[None]]
    _resources: AsyncExitStack

    @classmethod
    async def start(
        cls,
        workflows: Sequence[HostedWorkflow],
        *,
        control_plane_config: ControlPlaneConfig | None = None,
        message_queue_config: MessageQueueConfig | None = None,
        orchestrator_config: SimpleOrchestratorConfig | None = None,
        checks: Mapping[str, HealthCheck] | None = None,
        metrics: Sequence[MetricSource] = (),
        client_certificate: ClientCertificate | None = None,
    ) -> LocalStack:
        """Start everything. Returns when the services accept tasks.

        Args:
            workflows: What to host; may be empty.
            control_plane_config: Settings of the control plane. With port 0 the system chooses one.
            message_queue_config: Settings of the queue. A simple queue runs here, and with port 0 the
                system chooses one; other brokers run on their own. None: a simple queue.
            orchestrator_config: Settings of the orchestrator.
            checks: Further checks of `/health/ready`, see `ControlPlaneServer`.
            metrics: Further metrics for `/metrics`, see `ControlPlaneServer`.
            client_certificate: See `ControlPlaneServer`.

        Raises:
            ConfigError: A setting cannot work, an address cannot be bound, or a class or function does not
                return a workflow.
            UnavailableError: The broker or the database does not answer.
            StoreLockedError: Another control plane uses the store.
            InvalidRequestError: The name of a service is invalid.
        """
        config = control_plane_config or ControlPlaneConfig()
        services: list[WorkflowService] = []
        all_checks = dict(checks or {})
        if workflows:
            all_checks["services"] = partial(_check_services, services, len(workflows))
        async with AsyncExitStack() as stack:
            callers = await open_callers(stack, config)
            queue = await open_queue(
                stack,
                message_queue_config or SimpleMessageQueueConfig(),
                also_reached_as=[config.host, *config.trusted_hosts],
                callers=callers,
            )
            control_plane = await stack.enter_async_context(
                ControlPlaneServer(
                    queue,
                    orchestrator=SimpleOrchestrator(orchestrator_config),
                    config=config,
                    checks=all_checks,
                    callers=callers,
                    state_store=None if callers is None else callers.store,
                    metrics=[partial(_metrics_of, services), *metrics],
                    client_certificate=client_certificate,
                )
            )
            watching = asyncio.create_task(control_plane.plane.run())
            stack.push_async_callback(end, [watching])
            gateway = control_plane.gateway()
            services += [
                WorkflowService(hosted.workflow, queue, hosted.config, gateway=gateway)
                for hosted in workflows
            ]
            running: list[asyncio.Task[None]] = []
            # Services drain first, while queue and control plane still accept their reports.
            stack.push_async_callback(end, running)
            for service in services:
                running.append(await service.launch_local())
                await service.register_to_control_plane()
            return cls(control_plane, queue, services, [watching, *running], stack.pop_all())

    @property
    def control_plane_url(self) -> str:
        """The URL of the control plane, for clients and further instances."""
        return self.control_plane.config.url

    @property
    def message_queue_url(self) -> str:
        """The URL of the queue. Instances in other processes get it from the control plane."""
        return self.message_queue.as_config().address

    async def run(self) -> None:
        """Wait until a part fails, and raise its error. Cancel this to stop waiting, then `close`."""
        done, _ = await asyncio.wait(self._parts, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def close(self) -> None:
        """Drain the services, then stop the control plane and the queue. Idempotent; deletes nothing.

        If it is cancelled, the services release running tasks at once. Everything is closed in any case.
        """
        resources, self._resources = self._resources, AsyncExitStack()
        await resources.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
