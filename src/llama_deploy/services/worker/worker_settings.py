"""Settings of a worker, and what a service replaces of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workflows import Context

from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.types.services import Registration


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Who the instance is, and how it works."""

    config: WorkflowServiceConfig
    instance_id: str
    registration: Registration


@dataclass(frozen=True, slots=True)
class WorkerHooks:
    """What a service's own methods replace. None: nothing."""

    process: Callable[[WorkflowState], Awaitable[None]] | None = None
    """Executes an attempt and reports it, in place of `Worker.process`."""
    take_tasks: Callable[[], Awaitable[None]] | None = None
    """Takes tasks, in place of `Worker.take_tasks`."""
    load_state: Callable[[WorkflowState], Awaitable[Context | None]] | None = None
    """Reads the workflow's state, in place of `StateCodec.load`."""
    save_state: Callable[[Context, WorkflowState], Awaitable[None]] | None = None
    """Writes the workflow's state, in place of `StateCodec.save`."""
