"""A service that hosts a workflow."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from workflows.events import StopEvent

from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.errors import ConfigError
from llama_deploy.interceptors import WorkerInterceptor
from llama_deploy.message_consumers import (
    BaseMessageQueueConsumer,
    CallableMessageConsumer,
    RemoteMessageConsumer,
)
from llama_deploy.message_queues.base import AbstractMessageQueue, PublishCallback
from llama_deploy.services.background import run_to_completion
from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.services.run.workflow_factory import AnyWorkflow
from llama_deploy.services.shell.service_routes import create_service_app, service_edge
from llama_deploy.services.shell.workflow_calls import WorkflowCalls
from llama_deploy.services.values.sure_schemas import event_schemas, input_check
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.services.worker.workflow_worker import WorkflowWorker
from llama_deploy.supervisor.step_trail import StepTrail
from llama_deploy.types import ServiceDefinition
from llama_deploy.web.connection_settings import Address
from llama_deploy.web.http_server import HttpServer

logger = logging.getLogger(__name__)


class WorkflowService(WorkflowCalls):
    """Hosts a workflow: claims its tasks, runs them, streams their events and reports their outcomes.

    Start it with `launch_server`, or with `launch_local` if you do not need HTTP, and register it with
    `register_to_control_plane`, in either order. It works on tasks as soon as both are done. Each object is
    one instance of the service; several instances may host one workflow.

    To stop it, cancel what launched it. It then drains: it takes no new work, running tasks may end within
    `drain_timeout`, and the rest is handed back to run elsewhere. A second cancellation hands back at once.

    Args:
        workflow: A `Workflow` class, or a function without arguments that returns a new workflow: it is
            called once to describe the service, and once for each run, which then has an object of its own.
            Or an instance, which all runs share: what one run sets on it, others see. If the class has a
            `run` method of its own, that is called. The service takes over the time limit of an object, so
            runs of the same object outside of the service have none.
        message_queue: The queue that the control plane uses. You close it.
        config: Settings.
        publish_callback: Called with each message after the queue has it.
        gateway: The connection to the control plane. None: HTTP, to the URL with which the service registers.
        trail: Notes which steps execute, for the supervisor of this process. None: it has no supervisor.
        alone: Whether this instance only runs tasks whose processes have died repeatedly, one at a time, and
            ends when there are none. It needs `max_concurrent_tasks=1` and a process for itself.
        interceptors: See `BaseService`.
        **settings: Fields of `WorkflowServiceConfig`, as in 0.5. They replace those of `config`.

    Raises:
        ConfigError: A class of `allowed_types` cannot be imported, or the class or function that is to make
            the workflow has failed.
    """

    def __init__(
        self,
        workflow: AnyWorkflow,
        message_queue: AbstractMessageQueue,
        config: WorkflowServiceConfig | None = None,
        publish_callback: PublishCallback | None = None,
        *,
        gateway: ControlPlaneGateway | None = None,
        trail: StepTrail | None = None,
        alone: bool = False,
        interceptors: Sequence[WorkerInterceptor] = (),
        **settings: Any,
    ) -> None:
        config = _with_settings(config, settings)
        extra = [_load_class(name) for name in config.allowed_types]
        self._hosted = HostedWorkflow.prepare(
            workflow,
            service_name=config.service_name,
            extra=extra,
            keys=config.state_keys,
            strict=config.durability == "step",
        )
        super().__init__(
            config.service_name,
            self._hosted,
            gateway=gateway,
            interceptors=interceptors,
            metrics=config.metrics,
        )
        self.workflow = self._hosted.first
        """The instance that all runs share, or the first object that was made, which only describes them."""
        self.config = config
        self.instance_id = self._instance_id
        self._message_queue = message_queue
        self._trail = trail
        self._alone = alone
        self._publish_callback = publish_callback
        self._port = config.port or None
        self.app = create_service_app(self)

    @property
    def service_definition(self) -> ServiceDefinition:
        """What the service registers: itself as an instance, and its input and output."""
        stop_class = self.workflow.stop_event_class
        return ServiceDefinition(
            session_policy=self.config.session_policy,
            service_name=self.service_name,
            description=self.config.description,
            host=self.config.host,
            port=self._port,
            instance_id=self.instance_id,
            input_schema=_schema_of(self.workflow.start_event_class),
            output_schema=None if stop_class is StopEvent else _schema_of(stop_class),
            input_check=input_check(self.workflow) if self._override("process_call") is None else None,
            accepted_events=self._hosted.events.names,
            event_schemas=event_schemas(self._hosted.events.classes),
            question_events=self._hosted.events.questions,
            answer_events=self._hosted.events.answers,
            slots=self.config.max_concurrent_tasks,
            alone=self._alone,
            workflow=self._hosted.journals.shape,
        )

    @property
    def message_queue(self) -> AbstractMessageQueue:
        """The queue."""
        return self._message_queue

    @property
    def publisher_id(self) -> str:
        """The service's name and the instance's id."""
        return f"{self.service_name}-{self.instance_id}"

    @property
    def publish_callback(self) -> PublishCallback | None:
        """Called with each message after the queue has it."""
        return self._publish_callback

    @property
    def url(self) -> str:
        """The URL of the service. With port 0, the actual port is known once it listens."""
        return self.config.model_copy(update={"port": self._port or 0}).url

    async def register_to_control_plane(self, control_plane_url: Address | None = None) -> None:
        """See `ControlPlaneMember.register_to_control_plane`. A launched service begins to work on tasks."""
        was_registered = self._registered.is_set()
        await super().register_to_control_plane(control_plane_url)
        if not was_registered:
            logger.info(
                "service %s registered as instance %s",
                self.service_name,
                self.instance_id,
                extra={"action": "register", "service_name": self.service_name},
            )

    @ends_quietly
    async def processing_loop(self) -> None:
        """Work on tasks from registration until cancelled, then drain.

        Raises:
            UnavailableError: The message queue was closed.
            Exception: What a task raised, if `raise_exceptions` is set.
        """
        await self._registered.wait()
        self._worker = WorkflowWorker(
            self._hosted,
            self.config,
            settings=WorkerSettings.of(
                self.config,
                instance_id=self.instance_id,
                registration=self._registration,
                trail=self._trail,
                alone=self._alone,
                interceptors=self._interceptors,
            ),
            queue=self.message_queue,
            gateway=self.gateway,
            publish=self._report_publisher().publish,
            register=self.register_to_control_plane,
            hooks=self._worker_hooks(),
        )
        try:
            await self._worker.run()
        finally:
            self._worker = None
            await run_to_completion(self._leave())

    async def launch_local(self) -> asyncio.Task[None]:
        """Start the service in the running loop, without HTTP. Cancel the task to stop it."""
        logger.info("%s launch_local", self.service_name, extra={"action": "launch"})
        self._launch.listening.set()
        return self._launch.begin()

    @ends_quietly
    async def launch_server(self) -> None:
        """Run the service with its HTTP server until cancelled.

        Raises:
            ConfigError: The address cannot be bound.
            Exception: See `processing_loop`.
        """
        config = self.config
        host = config.internal_host or config.host
        port = config.port if config.internal_port is None else config.internal_port
        logger.info("Launching %s server at %s:%s", self.service_name, host, port, extra={"action": "launch"})
        allow_remote = config.allow_remote or config.api_key is not None
        listening = HttpServer.start(
            service_edge(self), host=host, port=port, allow_remote=allow_remote, tls=config.tls
        )
        async with await listening as server:
            self._port = config.port or server.port
            if self._registered.is_set() and not config.port:
                await self.register_to_control_plane()
            self._launch.listening.set()
            processing = await self._launch.wait_for_end()
        if not processing.cancelled():
            processing.result()

    async def wait_listening(self) -> None:
        """Wait until the service is launched and, with `launch_server`, its port is open and known."""
        await self._launch.listening.wait()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:  # noqa: ARG002 - FastAPI passes itself
        """Work on tasks while a FastAPI application runs."""
        async with self._launch.running():
            yield

    async def home(self) -> dict[str, str]:
        """Return what the service is and how it is doing."""
        return {
            "service_name": self.service_name,
            "description": self.config.description,
            "running": str(self._worker is not None),
            "step_interval": str(self.config.step_interval),
            "num_outstanding_calls": str(0 if self._worker is None else len(self._worker.attempts)),
            "type": "workflow_service",
        }

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6 API
        """Return a consumer that passes messages to `process_message`.

        Args:
            remote: Whether it posts them to the service's URL instead of calling it.
        """
        if remote:
            return RemoteMessageConsumer(
                id_=self.publisher_id, url=f"{self.url}/process_message", message_type=self.service_name
            )
        return CallableMessageConsumer(
            id_=self.publisher_id, message_type=self.service_name, handler=self.process_message
        )


def _schema_of(cls: type[BaseModel]) -> dict[str, Any] | None:
    """Return the JSON schema of a class, None if there is none."""
    try:
        return cls.model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return None


def _with_settings(config: WorkflowServiceConfig | None, settings: dict[str, Any]) -> WorkflowServiceConfig:
    """Return the settings of a service that gets some as keyword arguments."""
    if config is not None and not settings:
        return config
    settings.pop("running", None)  # 0.5 had it, and nothing used it
    if unknown := sorted(settings.keys() - WorkflowServiceConfig.model_fields.keys()):
        raise TypeError(f"WorkflowService does not have the argument {unknown[0]!r}")
    given = {} if config is None else config.model_dump(exclude_unset=True)
    return WorkflowServiceConfig(**{**given, **settings})


def _load_class(name: str) -> type:
    """Import a class that the service's settings name."""
    try:
        cls = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"allowed_types names {name!r}, which cannot be imported: {exc}") from exc
    if not isinstance(cls, type):
        raise ConfigError(f"allowed_types names {name!r}, which is not a class")
    return cls
