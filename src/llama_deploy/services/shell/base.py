"""The base of every service."""

from __future__ import annotations

import asyncio
import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.cancellation import ends_quietly
from llama_deploy.concurrency.retrying import Outage, is_transient, retry
from llama_deploy.errors import ConfigError, LlamaDeployError
from llama_deploy.health import PASSED, Checks, failed
from llama_deploy.interceptors import WorkerInterceptor, hooks_of, worker_interceptors
from llama_deploy.message_consumers import BaseMessageQueueConsumer
from llama_deploy.message_publishers import MessageQueuePublisherMixin
from llama_deploy.message_queues.base import StartConsumingCallable
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.background import end, run_to_completion
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.shell.control_plane_member import ControlPlaneMember, ControlPlaneSettings
from llama_deploy.services.worker.held_attempts import HeldAttempts
from llama_deploy.services.worker.message_worker import MessageWorker
from llama_deploy.services.worker.published_reports import report_published
from llama_deploy.services.worker.report_publisher import ReportPublisher
from llama_deploy.services.worker.worker import Worker
from llama_deploy.services.worker.worker_metrics import WorkerMetrics
from llama_deploy.services.worker.worker_settings import WorkerSettings
from llama_deploy.tracing import is_active
from llama_deploy.types.topics import CONTROL_PLANE
from llama_deploy.web.connection_settings import Address

logger = logging.getLogger(__name__)

_REPORTS: Final = (ActionTypes.COMPLETED_TASK, ActionTypes.TASK_STREAM)
_BACKOFF: Final = Backoff(first=0.05, longest=1.0)
_DEREGISTER_SECONDS: Final = 5.0
"""How long deregistering may take when the service stops."""


class BaseService(ControlPlaneMember, MessageQueuePublisherMixin):
    """A service: it has a name, takes messages from a queue, and registers with the control plane.

    Derive from this class to host something other than a workflow. `process_message` gets each task as a
    `new_task` message, whose data can be read as `TaskDefinition`. The task ends with the first of these:

    * `process_message` returns a value other than None, which is the result.
    * You publish a `TaskResult` in a `completed_task` message, from there or later from anywhere else.
    * `process_message` raises an exception: the task fails.

    Before that, you can publish `TaskStream` events in `task_stream` messages. What you publish about a task
    that has ended or that another instance has taken over is logged and not sent.

    The base class does the rest while the result of `register_to_message_queue` runs: it registers this
    object as an instance, claims tasks, sends heartbeats, reports results, and drains when it is cancelled.
    An event that is sent to a running task is a `send_event` message; its `input` is the event as JSON. A
    task that is cancelled, or that belongs to another instance, cancels its `process_message`.

    Args:
        name: The name that clients call.
        control_plane_url: See `ControlPlaneMember`.
        control_plane_config: See `ControlPlaneMember`.
        gateway: See `ControlPlaneMember`.
        max_concurrent_tasks: How many tasks this instance has at the same time, those included whose results
            you publish later.
        drain_timeout: Seconds that running tasks may take to end when the service stops. The rest is handed
            back.
        interceptors: Hooks around its work, in addition to those of installed packages; see
            `llama_deploy.interceptors`.
        metrics: Whether its work is counted and timed; see `metrics_text`.
    """

    def __init__(
        self,
        name: str,
        control_plane_url: Address | None = None,
        control_plane_config: ControlPlaneSettings | None = None,
        *,
        gateway: ControlPlaneGateway | None = None,
        max_concurrent_tasks: int = 8,
        drain_timeout: float = 30.0,
        interceptors: Sequence[WorkerInterceptor] = (),
        metrics: bool = True,
    ) -> None:
        super().__init__(name, control_plane_url, control_plane_config, gateway=gateway)
        self._max_concurrent_tasks = max_concurrent_tasks
        self._drain_timeout = drain_timeout
        self._metrics = WorkerMetrics(name) if metrics else None
        self._interceptors: Sequence[WorkerInterceptor] = (
            *_tracing(),
            *worker_interceptors(),
            *interceptors,
            *([] if self._metrics is None else [self._metrics]),
        )
        self._consuming_ended = asyncio.Event()
        self._worker: Worker[Any] | None = None
        """None: the service does not work on tasks."""

    async def deregister_from_control_plane(self) -> None:
        """Remove the registration of this instance. Others of the service stay.

        Raises:
            UnavailableError: The control plane does not answer.
        """
        await super().deregister_from_control_plane()
        if self._worker is None:
            await self.close_gateway()

    @abstractmethod
    def as_consumer(self, remote: bool = False) -> BaseMessageQueueConsumer:  # noqa: FBT001, FBT002 - 0.6 API
        """Return a consumer that passes messages to the service.

        Args:
            remote: Whether it posts them to the service's URL instead of calling it.
        """

    @abstractmethod
    async def processing_loop(self) -> None:
        """Process messages until cancelled."""

    @abstractmethod
    async def process_message(self, message: QueueMessage) -> Any:
        """Process one message, its `type` the service's name.

        An exception fails the task of a `new_task` message. It drops an event, and returns any other message
        to the queue.
        """

    @abstractmethod
    async def launch_local(self) -> asyncio.Task[None]:
        """Start the service in the running loop. Cancel the returned task to stop it."""

    @abstractmethod
    async def launch_server(self) -> None:
        """Run the service with its HTTP server until cancelled."""

    def health_checks(self) -> Checks:
        """Return whether this instance works on tasks, and reaches its queue. Thread-safe; asks nobody."""
        worker = self._worker
        problem = "it has not joined its control plane" if worker is None else worker.problem
        problems = {"instance": problem, "queue": self.message_queue.problem}
        return {name: PASSED if reason is None else failed(reason) for name, reason in problems.items()}

    def metrics_text(self) -> str:
        """Return the metrics of this instance in the text format of Prometheus. Thread-safe; asks nobody."""
        worker = self._worker
        return "" if self._metrics is None else self._metrics.text(None if worker is None else worker.load)

    @property
    def blocked_seconds(self) -> float:
        """For how many seconds the event loop has been blocked; 0 if it is not. Thread-safe."""
        return 0.0 if self._worker is None else self._worker.blocked_seconds

    async def publish(self, message: QueueMessage, **kwargs: Any) -> None:
        """Publish a message; see `MessageQueuePublisherMixin`.

        A result or an event of a task goes to the control plane in the name of the attempt that this instance
        has. Then this returns when the queue or the control plane has it, however long that takes.

        Raises:
            InvalidRequestError: The data of a result or an event is malformed.
            SerializationError: The message holds something that is not JSON.
        """
        if self._is_about_task(message, kwargs.get("topic")):
            worker = self._worker
            await report_published(message, HeldAttempts() if worker is None else worker.attempts)
        else:
            await super().publish(message, **kwargs)

    def _is_about_task(self, message: QueueMessage, topic: str | None) -> bool:
        """Whether a message is a result or an event without the attempt's token, for the control plane."""
        if message.action not in _REPORTS or "token" in message.data:
            return False
        if topic is None:
            # A program may leave out the type: there is no other receiver of these messages.
            return message.type in (CONTROL_PLANE, "default")
        return topic == self.topics.control_plane

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Return a callable that works on the service's tasks until cancelled or deregistered, then drains.

        It waits until the service is registered with the control plane. If you have not done that, it does
        it as soon as the control plane answers.
        """
        self._consuming_ended = ended = asyncio.Event()
        return partial(self._consume, self.as_consumer(), ended)

    async def deregister_from_message_queue(self) -> None:
        """Let what `register_to_message_queue` returned drain and end. Idempotent."""
        self._consuming_ended.set()

    @ends_quietly
    async def _consume(self, consumer: BaseMessageQueueConsumer, ended: asyncio.Event) -> None:
        if self._worker is not None:
            raise ConfigError(f"service {self.service_name!r} is consuming already; create another instance")
        stopping = asyncio.create_task(ended.wait())
        working = asyncio.create_task(self._work(consumer), name=f"service {self.service_name}")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await end([working])
        if not working.cancelled():
            working.result()

    async def _work(self, consumer: BaseMessageQueueConsumer) -> None:
        """Work on tasks from registration until cancelled, then drain."""
        await self._join()
        worker = self._worker = MessageWorker(
            consumer,
            WorkerSettings(
                service_name=self.service_name,
                instance_id=self._definition.instance_id or self._instance_id,
                registration=self._registration,
                max_concurrent_tasks=self._max_concurrent_tasks,
                drain_timeout=self._drain_timeout,
                interceptors=self._interceptors,
            ),
            queue=self.message_queue,
            gateway=self.gateway,
            publish=self._report_publisher().publish,
            register=self.register_to_control_plane,
        )
        try:
            await worker.run()
        finally:
            self._worker = None
            await run_to_completion(self._leave())

    async def _join(self) -> None:
        """Wait until the service is registered; register it if that was not done and the URL is known."""
        if not self._registered.is_set() and (self._gateway or self.control_plane_url):
            outage = Outage(on_start=self._log_waiting, on_end=lambda: None)
            await retry(
                self.register_to_control_plane,
                backoff=_BACKOFF,
                retry_on=is_transient,
                outage=outage,
            )
        await self._registered.wait()

    def _log_waiting(self, exc: LlamaDeployError) -> None:
        logger.warning(
            "service %s waits for its control plane: %s; retrying",
            self.service_name,
            exc,
            extra={"action": "wait"},
        )

    def _report_publisher(self) -> ReportPublisher:
        publish = partial(self.publish, topic=self.topics.control_plane)
        hooks = hooks_of(self._interceptors, WorkerInterceptor, "publish")
        return ReportPublisher(publish, upload=self.gateway.report, hooks=hooks)

    async def _leave(self) -> None:
        """Deregister this instance, not the service, and disconnect from the control plane."""
        self._registered.clear()
        try:
            async with asyncio.timeout(_DEREGISTER_SECONDS):
                await self.deregister_from_control_plane()
        except (LlamaDeployError, TimeoutError) as exc:
            logger.warning(
                "service %s could not deregister: %s", self.service_name, exc, extra={"action": "deregister"}
            )
        await self.close_gateway()


def _tracing() -> Sequence[WorkerInterceptor]:
    """Return what writes traces, if the program has set up OpenTelemetry."""
    if not is_active():
        return ()
    from llama_deploy.services.worker.worker_tracing import WorkerTracing  # noqa: PLC0415 - see `tracing`

    return (WorkerTracing(),)
