"""The methods with which programs written for llama_deploy 0.6 steer or extend a workflow service.

The service's own work does not go through them. If a subclass overrides one of them, its override is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workflows import Context

from llama_deploy.errors import UnavailableError
from llama_deploy.interceptors import WorkerInterceptor
from llama_deploy.message_queues.base import StartConsumingCallable
from llama_deploy.messages import QueueMessage
from llama_deploy.services.gateway import ControlPlaneGateway
from llama_deploy.services.run.hosted_workflow import HostedWorkflow
from llama_deploy.services.shell.base import BaseService
from llama_deploy.services.shell.launching import Launch
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.services.worker.worker_settings import WorkerHooks
from llama_deploy.services.worker.workflow_worker import WorkflowWorker


class WorkflowCalls(BaseService):
    """Passes calls to the worker of a workflow service.

    Args:
        name: The service's name.
        hosted: The workflow.
        gateway: See `ControlPlaneMember`.
        interceptors: See `BaseService`.
        metrics: See `BaseService`.
    """

    def __init__(
        self,
        name: str,
        hosted: HostedWorkflow,
        *,
        gateway: ControlPlaneGateway | None,
        interceptors: Sequence[WorkerInterceptor] = (),
        metrics: bool = True,
    ) -> None:
        super().__init__(name, gateway=gateway, interceptors=interceptors, metrics=metrics)
        self._states = hosted.states
        self._launch = Launch(self.processing_loop, name=f"service {name}")
        self._worker: WorkflowWorker | None = None

    async def get_workflow_state(self, state: WorkflowState) -> Context | None:
        """Return a context with the workflow's state of the session. None: the session holds none.

        Raises:
            SerializationError: The session holds a state that this workflow cannot read.
            SignatureError: The session holds a state that was not signed with a key of this service.
        """
        return await self._states.load(state)

    async def set_workflow_state(self, ctx: Context, current_state: WorkflowState) -> None:
        """Put the workflow's state after a run into `current_state.state`.

        The control plane stores it together with the task's outcome.

        Raises:
            SerializationError: A value in the state cannot be written; the path says where.
        """
        await self._states.save(ctx, current_state)

    async def process_call(self, current_call: WorkflowState) -> None:
        """Run a call that this instance has claimed, and report its outcome.

        Raises:
            InvalidRequestError: This instance has not claimed the call.
            UnavailableError: The service is not working yet.
        """
        worker = self._require_worker()
        await worker.process(worker.attempts.find(current_call.task_id, current_call.attempt))

    async def process_message(self, message: QueueMessage) -> None:
        """Process one message: begin a task, or pass an event or a cancellation to a running one.

        Returns when the task is claimed; it then runs in the background.

        Raises:
            InvalidRequestError: The message is not for a workflow service.
            OverloadedError: There is no free slot.
            UnavailableError: The service is not working yet, or the control plane does not answer.
        """
        await self._require_worker().accept(message)

    async def manage_tasks(self) -> None:
        """Take tasks from the queue while there are free slots, and run them; until cancelled.

        Raises:
            UnavailableError: The service is not working yet.
        """
        await self._require_worker().take_tasks()

    async def register_to_message_queue(self) -> StartConsumingCallable:
        """Return a callable that waits until the service stops.

        The service reads its topics itself once it is launched and registered, so there is no consumer to
        start. Programs written for 0.6, which start one, keep working.
        """
        self._launch.begin_consuming()
        return self._launch.wait_consuming

    async def deregister_from_message_queue(self) -> None:
        """End the wait of `register_to_message_queue`. Idempotent.

        The service keeps reading its topics until what launched it is cancelled.
        """
        self._launch.end_consuming()

    def _require_worker(self) -> WorkflowWorker:
        if self._worker is None:
            raise UnavailableError(
                f"service {self.service_name!r} is not working; launch it and call register_to_control_plane"
            )
        return self._worker

    def _worker_hooks(self) -> WorkerHooks:
        """Return the methods that a subclass, or the object, overrides."""
        return WorkerHooks(
            process=self._override("process_call"),
            take_tasks=self._override("manage_tasks"),
            load_state=self._override("get_workflow_state"),
            save_state=self._override("set_workflow_state"),
        )

    def _override(self, name: str) -> Callable[..., Any] | None:
        method: Callable[..., Any] = getattr(self, name)
        return None if getattr(method, "__func__", None) is getattr(WorkflowCalls, name) else method
