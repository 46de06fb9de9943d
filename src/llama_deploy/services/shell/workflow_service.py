"""A service that hosts a workflow."""

from __future__ import annotations

import asyncio
import logging
import pkgutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from workflows import Context, Workflow
from workflows.events import StopEvent

from llama_deploy.errors import (
    ConfigError,
    LlamaDeployError,
    UnavailableError,
)
from llama_deploy.message_consumers import (
    BaseMessageQueueConsumer,
    CallableMessageConsumer,
    RemoteMessageConsumer,
)
from llama_deploy.message_queues.base import (
    AbstractMessageQueue,
    PublishCallback,
    StartConsumingCallable,
)
from llama_deploy.messages import QueueMessage
from llama_deploy.services.closing import to_the_end
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.endings import Ending
from llama_deploy.services.run.hosting import host_runs
from llama_deploy.services.run.journal_format import JournalFormat, Past
from llama_deploy.services.run.mailbox import Mailbox
from llama_deploy.services.run.run_journal import RunJournal
from llama_deploy.services.run.step_guard import guard_steps
from llama_deploy.services.run.workflow_run import RunLimits, WorkflowRun
from llama_deploy.services.shell.base import BaseService
from llama_deploy.services.shell.config import WorkflowServiceConfig
from llama_deploy.services.shell.service_routes import create_service_app, service_edge
from llama_deploy.services.values.payloads import EventRegistry
from llama_deploy.services.values.run_arguments import RunCall, parse_arguments
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing
from llama_deploy.services.worker.attempt import Attempt, WorkflowState
from llama_deploy.services.worker.report_publisher import ReportPublisher
from llama_deploy.services.worker.worker import Worker, WorkerSettings
from llama_deploy.types import ServiceDefinition, generate_id
from llama_deploy.types.topics import Topics
from llama_deploy.web.connection_settings import Address
from llama_deploy.web.http_server import HttpServer
from llama_deploy.workflow_library import cache_steps, resuming, take_timeout

logger = logging.getLogger(__name__)

_GOODBYE_SECONDS: Final = 5.0
"""How long the control plane is waited for when the service stops."""


class WorkflowService(BaseService):
    """Hosts a workflow: claims its tasks, runs them, streams their events and reports how they ended.

    Start it with `launch_server`, or `launch_local` without HTTP, and register it with
    `register_to_control_plane`, in either order; it works on tasks from the moment when both are done. Each
    object is one instance of the service; several may share one workflow.

    Stopping it, by cancelling what launched it, drains: no new work, running tasks end within
    `drain_timeout`, the others are handed back to run elsewhere. A second cancellation hands back at once.

    Args:
        workflow: Any workflow; one that has a `run` of its own is called by that. The service takes its time
            limit over, so runs of the same object outside of the service have none.
        message_queue: The queue that the control plane uses; stays the caller's to close.
        config: Settings.
        publish_callback: Called with each message after the queue has it.
        gateway: The way to the control plane. None: HTTP, from the URL with which the service registers.

    Raises:
        ConfigError: A class of `allowed_types` cannot be imported.
    """

    def __init__(
        self,
        workflow: Workflow,
        message_queue: AbstractMessageQueue,
        config: WorkflowServiceConfig,
        publish_callback: PublishCallback | None = None,
        *,
        gateway: ControlPlaneGateway | None = None,
    ) -> None:
        super().__init__(config.service_name, gateway=gateway)
        self.workflow = workflow
        self.config = config
        self.instance_id = generate_id()
        self._message_queue = message_queue
        self._publish_callback = publish_callback
        guard_steps(workflow)
        cache_steps(workflow)
        host_runs(workflow)
        self._timeout = take_timeout(workflow)
        extra = [_load_class(name) for name in config.allowed_types]
        self._events = EventRegistry(workflow, extra)
        writing = Writing(workflow, extra=extra, keys=config.state_keys)
        self._states = StateCodec(workflow, writing)
        self._journals = JournalFormat.of(workflow, writing=writing, states=self._states)
        self._registered = asyncio.Event()
        self._listening = asyncio.Event()
        self._consuming_ended = asyncio.Event()
        self._worker: Worker | None = None
        self._processing: asyncio.Task[None] | None = None
        self._port = config.port or None
        self.app = create_service_app(self)

    @property
    def service_definition(self) -> ServiceDefinition:
        """What the service registers: itself as an instance, and what it takes and gives."""
        stop_class = self.workflow.stop_event_class
        return ServiceDefinition(
            service_name=self.service_name,
            description=self.config.description,
            host=self.config.host,
            port=self._port,
            instance_id=self.instance_id,
            input_schema=_schema_of(self.workflow.start_event_class),
            output_schema=None if stop_class is StopEvent else _schema_of(stop_class),
            accepted_events=self._events.names,
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
    def topics(self) -> Topics:
        """The names of the topics."""
        return Topics(self._registration.topic_namespace)

    async def register_to_control_plane(self, control_plane_url: Address | None = None) -> None:
        """See `BaseService.register_to_control_plane`. A launched service begins to work on tasks."""
        await super().register_to_control_plane(control_plane_url)
        if not self._registered.is_set():
            logger.info(
                "service %s registered as instance %s",
                self.service_name,
                self.instance_id,
                extra={"action": "register", "service_name": self.service_name},
            )
        self._registered.set()

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Return a callable that waits until the service, launched before or after, stops.

        A workflow service reads its topics itself once it is launched and registered, so there is no other
        consumer to start; 0.6 programs, which start one, stay right.
        """
        if self._processing is None or not self._processing.done():
            self._consuming_ended.clear()

        async def start_consuming() -> None:
            await self._consuming_ended.wait()

        return start_consuming

    async def deregister_from_message_queue(self) -> None:
        """End the wait that `register_to_message_queue` has begun. Idempotent.

        The service goes on reading its topics until what launched it is cancelled.
        """
        self._consuming_ended.set()

    async def get_workflow_state(self, state: WorkflowState) -> Context | None:
        """Return a context with the workflow's state of the session, None if there is none.

        Raises:
            SerializationError: The session holds a state that this workflow cannot read.
            SignatureError: The session holds a state that nobody with a key of this service has signed.
        """
        state.hash = self._states.digest(state.state)
        return self._states.restore(state.state, session_id=state.session_id)

    async def set_workflow_state(self, ctx: Context, current_state: WorkflowState) -> None:
        """Put the workflow's state after a run into `current_state.state`.

        The control plane stores it together with the task's end.

        Raises:
            SerializationError: The state holds something that cannot be carried; the path says where.
        """
        current_state.state.update(
            await self._states.capture(ctx, current_state.state, session_id=current_state.session_id)
        )

    async def process_call(self, current_call: WorkflowState) -> None:
        """Run a call that this instance has claimed, and report how it ended.

        Raises:
            InvalidRequestError: This instance has not claimed such a call.
        """
        worker = self._live_worker()
        attempt = worker.find(current_call.task_id, current_call.attempt)
        ending, session_state = await self._execute(attempt)
        if ending is None or attempt.abandoned:
            if attempt.run is None or not attempt.run.has_left:
                logger.info(
                    "attempt %d of task %s is not this instance's any more; it was stopped",
                    attempt.key.attempt,
                    attempt.key.task_id,
                    extra={"action": "fenced_out", "task_id": attempt.key.task_id},
                )
            worker.forget(attempt)
        else:
            await worker.report(attempt, ending, session_state)

    async def _execute(self, attempt: Attempt) -> tuple[Ending | None, dict[str, Any] | None]:
        """Run an attempt; return how it ended and the changes to the session's state.

        Without an ending there is nothing to report: the run waits elsewhere, or belongs to somebody else.
        """
        state = attempt.state
        run: WorkflowRun | None = None
        try:
            run = attempt.run = await self._prepare(attempt)
            if attempt.cancelled:
                return Ending.cancelled(), None
            ending = await run.execute()
            if ending is None or ending.ctx is None:
                return ending, None
            await self.set_workflow_state(ending.ctx, state)
        except Exception as exc:  # noqa: BLE001 - the boundary of the task: what fails here fails the task
            return Ending.failed(exc), None
        finally:
            if run is not None and run.journal is not None:
                await run.journal.close()
        if self._states.digest(state.state) == state.hash:
            return ending, None
        return ending, {self._states.key: state.state[self._states.key]}

    async def _prepare(self, attempt: Attempt) -> WorkflowRun:
        """Return the run of an attempt, from its beginning or from where an earlier attempt left it."""
        record, state, worker = attempt.record, attempt.state, self._live_worker()
        state.run_kwargs = parse_arguments(attempt.input)
        if record is not None and record.goes_on:
            restored, past = self._journals.restore(record, task_id=attempt.key.task_id)
            if past.broker is not None:
                attempt.mailbox.go_on(past.broker)
            start = resuming(self.workflow, restored)
            state.hash = self._states.digest(state.state)
        else:
            call, past = RunCall.prepare(self.workflow, state.run_kwargs), Past(record)
            start = partial(call.start, await self.get_workflow_state(state))
        run = WorkflowRun(
            workflow=self.workflow,
            start=start,
            mailbox=attempt.mailbox,
            on_event=attempt.reports.add,
            label=f"task {attempt.key.task_id}",
            limits=RunLimits(
                timeout=self._timeout,
                idle_timeout=self.config.idle_timeout,
                spent=0.0 if record is None else record.running_seconds,
                goes_on=record is not None and record.goes_on,
            ),
            on_waiting=worker.on_waiting,
            hold_lease=worker.hold_lease,
        )
        if attempt.keeps_journal:
            run.journal = RunJournal(
                key=attempt.key,
                form=self._journals,
                write=self.gateway.journal,
                mailbox=attempt.mailbox,
                reports=attempt.reports,
                past=past,
                running_seconds=lambda: run.clock.running_seconds,
                on_failure=run.fail,
            )
        return run

    async def _publish_report(self, message: QueueMessage) -> None:
        await self.publish(message, topic=self.topics.control_plane)

    async def process_message(self, message: QueueMessage) -> None:
        """Process one message: begin a task, or hand an event or a cancellation to a running one.

        Returns when the task is claimed; it then runs in the background.

        Raises:
            InvalidRequestError: A message that a workflow service does not take.
            OverloadedError: As many tasks are running as may.
            UnavailableError: The service is not working yet, or the control plane does not answer.
        """
        await self._live_worker().accept(message)

    async def manage_tasks(self) -> None:
        """Take tasks from the queue, never more than there is room for, and run them; until cancelled.

        Raises:
            UnavailableError: The service is not working yet.
        """
        await self._live_worker().manage_tasks()

    async def processing_loop(self) -> None:
        """Work on tasks from registration until cancelled, then drain.

        Raises:
            UnavailableError: The message queue was closed.
            Exception: What a task raised, if `raise_exceptions` is set.
        """
        await self._registered.wait()
        self._worker = Worker(
            WorkerSettings(
                service_name=self.service_name,
                instance_id=self.instance_id,
                registration=self._registration,
                max_concurrent_tasks=self.config.max_concurrent_tasks,
                drain_timeout=self.config.drain_timeout,
                blocked_limit=self.config.blocked_limit,
                raise_exceptions=self.config.raise_exceptions,
                keeps_journals=self.config.durability == "step",
            ),
            queue=self.message_queue,
            gateway=self.gateway,
            process=self.process_call,
            new_mailbox=self._new_mailbox,
            publish=ReportPublisher(self._publish_report, upload=self.gateway.report).publish,
            register=self.register_to_control_plane,
        )
        try:
            await self._worker.run()
        finally:
            self._worker = None
            await to_the_end(self._leave())

    def _new_mailbox(self, task_id: str, on_seen: Callable[[int], None]) -> Mailbox:
        return Mailbox(task_id=task_id, workflow=self.workflow, registry=self._events, on_seen=on_seen)

    def _live_worker(self) -> Worker:
        if self._worker is None:
            raise UnavailableError(
                f"service {self.service_name!r} is not working; launch it and call register_to_control_plane"
            )
        return self._worker

    async def _leave(self) -> None:
        """Take this instance, not the service, off the control plane's list."""
        self._registered.clear()
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self.deregister_from_control_plane()
        except (LlamaDeployError, TimeoutError) as exc:
            logger.warning(
                "service %s could not deregister: %s", self.service_name, exc, extra={"action": "deregister"}
            )
        await self.close_gateway()

    async def launch_local(self) -> asyncio.Task[None]:
        """Start the service in the running loop, without HTTP; cancel the task to stop it."""
        self._listening.set()
        return self._begin()

    def _begin(self) -> asyncio.Task[None]:
        self._processing = asyncio.create_task(self.processing_loop(), name=f"service {self.service_name}")
        self._processing.add_done_callback(lambda _: self._consuming_ended.set())
        return self._processing

    async def launch_server(self) -> None:
        """Run the service with its HTTP server until cancelled.

        Raises:
            ConfigError: The address cannot be bound.
            Exception: See `processing_loop`.
        """
        host = self.config.internal_host or self.config.host
        port = self.config.port if self.config.internal_port is None else self.config.internal_port
        listening = HttpServer.start(
            service_edge(self), host=host, port=port, allow_remote=self.config.allow_remote
        )
        async with await listening as server:
            self._port = self.config.port or server.port
            if self._registered.is_set() and not self.config.port:
                await self.register_to_control_plane()
            self._listening.set()
            processing = self._processing
            if processing is None:
                raise ConfigError(f"service {self.service_name!r} has stopped")
            try:
                await asyncio.wait({processing})
            finally:
                await _end(processing)
        if not processing.cancelled():
            processing.result()

    async def wait_listening(self) -> None:
        """Wait until the service is launched and, with `launch_server`, its port is open and known."""
        await self._listening.wait()

    @property
    def url(self) -> str:
        """The URL of the service; with port 0 the real one is known once it listens."""
        return self.config.model_copy(update={"port": self._port or 0}).url

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:  # noqa: ARG002 - what FastAPI calls it with
        """Work on tasks while a FastAPI application, which calls it with itself, runs."""
        processing = self._begin()
        try:
            yield
        finally:
            await _end(processing)

    async def home(self) -> dict[str, str]:
        """Return what the service is and how it is doing."""
        return {
            "service_name": self.service_name,
            "description": self.config.description,
            "running": str(self._worker is not None),
            "step_interval": str(self.config.step_interval),
            "num_outstanding_calls": str(len(self._worker) if self._worker is not None else 0),
            "type": "workflow_service",
        }

    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6 API
        """Return a consumer that hands messages to `process_message`.

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


async def _end(processing: asyncio.Task[None]) -> None:
    """Cancel and wait; each cancellation of this call hurries it."""
    processing.cancel()
    while not processing.done():
        try:
            await asyncio.wait({processing})
        except asyncio.CancelledError:
            processing.cancel()


def _schema_of(cls: type[BaseModel]) -> dict[str, Any] | None:
    """Return a class's JSON schema, None if it has none."""
    try:
        return cls.model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return None


def _load_class(name: str) -> type:
    """Import a class that the service's own settings name."""
    try:
        cls = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise ConfigError(f"allowed_types names {name!r}, which cannot be imported: {exc}") from exc
    if not isinstance(cls, type):
        raise ConfigError(f"allowed_types names {name!r}, which is no class")
    return cls
