"""The task for which code runs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """The task for which a step runs, and its attempt. See `llama_deploy.workflow`."""

    task_id: str
    session_id: str
    service_name: str
    attempt: int
    """Number of the attempt, from 1."""


running_task: ContextVar[TaskInfo | None] = ContextVar("running_task", default=None)
"""The attempt for which the present context runs: a step, a tool, the processing of a message."""
