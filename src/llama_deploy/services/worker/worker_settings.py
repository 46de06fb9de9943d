"""Settings of a worker, and what a workflow service replaces of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from workflows import Context

from llama_deploy.interceptors import WorkerInterceptor
from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.supervisor.step_trail import StepTrail
from llama_deploy.types import Durability
from llama_deploy.types.services import Registration


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """Who the instance is, and how it works."""

    service_name: str
    instance_id: str
    registration: Registration
    max_concurrent_tasks: int
    """How many tasks the instance works on at the same time."""
    drain_timeout: float
    """Seconds that running tasks may take to end when the instance stops. The rest is handed back."""
    durability: Durability = Durability.TASK
    """What becomes of a task when the instance dies."""
    blocked_limit: float = 60.0
    """Seconds after which an instance whose event loop is blocked stops its heartbeats."""
    raise_exceptions: bool = False
    """Whether a failed task also ends the worker."""
    trail: StepTrail | None = None
    """Notes which steps execute. None: this process has no supervisor."""
    alone: bool = False
    """Whether the instance only runs suspects, one at a time, and ends when there are none."""
    interceptors: Sequence[WorkerInterceptor] = ()
    """Hooks around its work, the outermost first."""

    @classmethod
    def of(
        cls,
        config: WorkflowServiceConfig,
        *,
        instance_id: str,
        registration: Registration,
        trail: StepTrail | None = None,
        alone: bool = False,
        interceptors: Sequence[WorkerInterceptor] = (),
    ) -> WorkerSettings:
        """Return the settings of a workflow service."""
        return cls(
            service_name=config.service_name,
            instance_id=instance_id,
            registration=registration,
            max_concurrent_tasks=config.max_concurrent_tasks,
            drain_timeout=config.drain_timeout,
            durability=Durability.TASK if config.durability == "task" else Durability.STEP,
            # A supervisor ends a process that is blocked for too long. Until then its tasks stay here.
            blocked_limit=config.blocked_limit if trail is None else math.inf,
            raise_exceptions=config.raise_exceptions,
            trail=trail,
            alone=alone,
            interceptors=interceptors,
        )


@dataclass(frozen=True, slots=True)
class WorkerHooks:
    """What the own methods of a workflow service replace. None: nothing."""

    process: Callable[[WorkflowState], Awaitable[None]] | None = None
    """Executes an attempt and reports it, in place of `WorkflowWorker.process`."""
    take_tasks: Callable[[], Awaitable[None]] | None = None
    """Takes tasks, in place of `WorkflowWorker.take_tasks`."""
    load_state: Callable[[WorkflowState], Awaitable[Context | None]] | None = None
    """Reads the workflow's state, in place of `StateCodec.load`."""
    save_state: Callable[[Context, WorkflowState], Awaitable[None]] | None = None
    """Writes the workflow's state, in place of `StateCodec.save`."""
