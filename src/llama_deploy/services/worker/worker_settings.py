"""Settings of a worker."""

from __future__ import annotations

from dataclasses import dataclass

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
