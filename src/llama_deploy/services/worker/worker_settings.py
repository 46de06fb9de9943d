"""Settings of a worker, and what a service replaces of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from workflows import Context

from llama_deploy.services.worker.attempt import WorkflowState
from llama_deploy.types.services import Registration


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Who the instance is, and how it works."""

    service_name: str
    instance_id: str
    registration: Registration
    max_concurrent_tasks: int
    drain_timeout: float
    """Seconds that running tasks may take to end when the instance stops."""
    blocked_limit: float
    """Seconds after which heartbeats stop while the event loop is blocked."""
    idle_timeout: float | None
    """Seconds that a run may wait in memory for something from outside. None: without limit."""
    raise_exceptions: bool
    """Whether a failed task ends `run` with its exception."""
    keeps_journals: bool
    """Whether runs are written to journals, step by step."""


@dataclass(frozen=True, slots=True)
class WorkerHooks:
    """What a service's own methods replace. None: nothing."""

    process: Callable[[WorkflowState], Awaitable[None]] | None = None
    """Executes an attempt and reports it, in place of `Worker.process`."""
    take_tasks: Callable[[], Awaitable[None]] | None = None
    """Takes tasks, in place of `Worker.take_tasks`."""
    load_state: Callable[[WorkflowState], Awaitable[Context | None]] | None = None
    """Reads the workflow's state, in place of `SessionStates.load`."""
    save_state: Callable[[Context, WorkflowState], Awaitable[None]] | None = None
    """Writes the workflow's state, in place of `SessionStates.save`."""
