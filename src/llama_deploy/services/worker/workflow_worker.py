"""The worker of a workflow service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from llama_deploy.interceptors import WorkerInterceptor, hooks_of
from llama_deploy.message_queues.base import AbstractMessageQueue
from llama_deploy.messages import QueueMessage
from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_threads import THREADS_PER_TASK, StepThreads
from llama_deploy.services.worker.attempt_executor import AttemptExecutor
from llama_deploy.services.worker.worker import Worker
from llama_deploy.services.worker.worker_settings import WorkerHooks, WorkerSettings
from llama_deploy.services.worker.workflow_attempt import WorkflowAttempt
from llama_deploy.types.instance_protocol import ClaimReply, TaskDispatch


class WorkflowWorker(Worker[WorkflowAttempt]):
    """Runs a workflow for each task.

    Args:
        hosted: The workflow.
        config: Settings of the service.
        settings: See `WorkerSettings.of`.
        queue: See `Worker`.
        gateway: See `Worker`.
        publish: See `Worker`.
        register: See `Worker`.
        hooks: What the service's own methods replace.
    """

    def __init__(
        self,
        hosted: HostedWorkflow,
        config: WorkflowServiceConfig,
        *,
        settings: WorkerSettings,
        queue: AbstractMessageQueue,
        gateway: ControlPlaneGateway,
        publish: Callable[[QueueMessage], Awaitable[None]],
        register: Callable[[], Awaitable[None]],
        hooks: WorkerHooks,
    ) -> None:
        self._threads = StepThreads(
            config.service_name,
            limit=config.max_step_threads or THREADS_PER_TASK * config.max_concurrent_tasks,
            max_lost=config.max_lost_threads,
            on_change=self._on_threads,
        )
        super().__init__(
            settings,
            queue=queue,
            gateway=gateway,
            publish=publish,
            register=register,
            can_start=self._threads.can_start,
        )
        self._hooks = hooks
        self._executor = AttemptExecutor(
            hosted=hosted,
            config=config,
            publish=publish,
            write=gateway.journal,
            ledger=self.ledger,
            hooks=hooks,
            slots=self._slots,
            hold_lease=self._lease.hold,
            threads=self._threads,
            trail=settings.trail,
            on_step=hooks_of(settings.interceptors, WorkerInterceptor, "step"),
        )

    async def run(self) -> None:
        """See `Worker.run`."""
        try:
            await super().run()
        finally:
            self._threads.close()

    def new_attempt(
        self,
        message: QueueMessage,
        dispatch: TaskDispatch,
        reply: ClaimReply,
    ) -> WorkflowAttempt:
        """Return the attempt that a message offered, and that was claimed."""
        return self._executor.new_attempt(dispatch, reply, message.headers)

    async def execute(self, attempt: WorkflowAttempt) -> tuple[RunOutcome | None, dict[str, Any] | None]:
        """Run the workflow."""
        return await self._executor.execute(attempt)

    async def take_work(self) -> None:
        """Take tasks, as the service may have overridden."""
        await (self._hooks.take_tasks or self.take_tasks)()

    async def work(self, attempt: WorkflowAttempt) -> None:
        """Process an attempt, as the service may have overridden."""
        if self._hooks.process is None:
            await self.process(attempt)
            return
        try:
            await self._hooks.process(attempt.state)
        except Exception as exc:
            if attempt.run is not None:
                raise  # after the workflow, which has an outcome already
            attempt.answer(RunOutcome.failed(exc))
        if attempt.published is not None:
            await self.report(attempt, attempt.published)

    def _on_threads(self) -> None:
        """Threads of steps were lost or have ended, which may change whether there are free slots."""
        self._slots.changed()
