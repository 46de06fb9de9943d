"""Tasks as they travel: what a client asks for, and what it gets."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.ids import generate_id
from llama_deploy.types.json_values import JsonObject
from llama_deploy.types.keys import PublicId


class TaskStatus(StrEnum):
    """Where a task stands. The last four are terminal: once there, a task never changes again."""

    PENDING = "pending"
    """Accepted and stored; waits for the earlier tasks of its session."""
    QUEUED = "queued"
    """On its way to an instance of its service."""
    RUNNING = "running"
    """An instance has claimed it."""
    WAITING = "waiting"
    """Its run is parked until something from outside comes."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The workflow raised, or the task used up its attempts."""
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    """The workflow exceeded its own time limit."""

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended."""
        return self not in _OPEN


_OPEN: Final = frozenset({TaskStatus.PENDING, TaskStatus.QUEUED, TaskStatus.RUNNING, TaskStatus.WAITING})


class TaskFailure(BaseModel):
    """Why a task ended otherwise than by success."""

    type: str
    """Qualified name of the exception, such as `builtins.ValueError`."""
    message: str
    traceback: str | None = None
    """The last lines of the traceback in the service."""


class TaskDefinition(BaseModel):
    """A task as the 0.6 API defines it."""

    input: str
    """The run arguments: a JSON object as a string."""
    task_id: PublicId = Field(default_factory=generate_id, min_length=1, max_length=200)
    """Chosen by the client, so that sending the same definition twice makes one task."""
    session_id: PublicId | None = None
    agent_id: str | None = Field(default=None, max_length=200)
    """The name of the service."""


class TaskSubmission(BaseModel):
    """A task to accept, for `POST /tasks`."""

    model_config = ConfigDict(extra="forbid")

    service_name: str = Field(min_length=1, max_length=200)
    arguments: JsonObject = Field(default_factory=dict)
    """The run arguments of the workflow."""
    task_id: PublicId = Field(default_factory=generate_id, min_length=1, max_length=200)
    """Also the idempotency key: the same submission again returns the first one's task.

    One of the same id for another service or session, or with other arguments, is refused (`ConflictError`).
    """
    session_id: PublicId | None = Field(default=None, min_length=1, max_length=200)
    """None: the task gets a session of its own."""
    max_attempts: int | None = Field(default=None, ge=1, le=100)
    """How many instances may die under the task before it fails. None: the control plane's default.

    Deaths are forgiven when the run is parked, and when a step ends in an attempt that has lived for a
    minute; with `durability="task"` never.
    """


class TaskResult(BaseModel):
    """How a task ended."""

    task_id: str
    history: list[Any] = Field(default_factory=list)
    """Kept for the 0.6 API; empty."""
    result: str = ""
    """The result as text: `str(result)` of what the workflow returned; of a failure, its message."""
    data: dict[str, Any] = Field(default_factory=dict)
    """Kept for the 0.6 API; empty."""
    status: TaskStatus = TaskStatus.SUCCEEDED
    value: Any = None
    """The result as JSON."""
    value_type: str | None = None
    """Qualified name of the result's Python type, or None for plain JSON values."""
    error: TaskFailure | None = None
    attempts: int = 1
    """How many attempts were made."""


class TaskView(BaseModel):
    """A task as the control plane shows it."""

    task_id: str
    session_id: str
    service_name: str
    status: TaskStatus
    attempt: int
    """The attempt under way, or the last one; counted from 1."""
    instance_id: str | None = None
    """The instance that has claimed the task."""
    created_at: datetime
    finished_at: datetime | None = None
    result: TaskResult | None = None
    """None until the task has ended."""


class TaskEvent(BaseModel):
    """One event of a task's stream."""

    index: int
    """Position in the stream, from 0, without gaps."""
    type: str
    """Class name of the event, such as `ProgressEvent`."""
    data: dict[str, Any]
    """The event's fields as JSON."""
    terminal: bool = False
    """Whether this is the last event of the stream."""


class TaskStream(BaseModel):
    """One streamed event as the 0.6 API shows it."""

    task_id: str
    session_id: str | None = None
    data: dict[str, Any]
    index: int


class EventDefinition(BaseModel):
    """An event to be sent into a running workflow."""

    agent_id: str | None = None
    """The name of the service; checked against the task's when given."""
    event_obj_str: str
    """The event as JSON: `{"qualified_name": "module.Class", "value": {field: ...}}`."""
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)
    """Names the event within its task: sent again under the same key, it is accepted and adds nothing.

    None: every time that it is sent counts.
    """
