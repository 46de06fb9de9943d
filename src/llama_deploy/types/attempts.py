"""What a service instance and the control plane tell each other about attempts.

An attempt is one try at a task, numbered from 1. Whoever claims it gets a secret `token`; without it
nothing that is sent for the attempt counts.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from llama_deploy.types.tasks import EventDefinition, TaskFailure, TaskStatus

BEAT_TIMEOUT: Final = 5.0
"""Seconds that a heartbeat waits for its answer; a late one is as good as none."""


class TaskDispatch(BaseModel):
    """Data of a `new_task` message: an attempt that any instance of the service may claim."""

    task_id: str
    session_id: str
    agent_id: str
    """The name of the service."""
    input: str
    """The run arguments as a JSON object."""
    attempt: int


class InboxEntry(BaseModel):
    """Data of a `send_event` message: an event for a running workflow."""

    task_id: str
    seq: int
    """Position in the task's inbox, from 1. An entry that was seen before is ignored."""
    event: EventDefinition


class TaskCancellation(BaseModel):
    """Data of a `cancel_task` message."""

    task_id: str
    attempt: int


class EventPayload(BaseModel):
    """A streamed event without its place in the stream."""

    type: str
    data: dict[str, Any]


class AttemptEvents(BaseModel):
    """Data of a `task_stream` message: events that an attempt streamed."""

    task_id: str
    attempt: int
    token: str
    first: int
    """How many events of this attempt were sent before these, so that repeats and gaps are seen."""
    events: list[EventPayload]


class AttemptOutcome(AttemptEvents):
    """Data of a `completed_task` message: the attempt's last events and how it ended."""

    status: TaskStatus
    """A terminal status."""
    result: str = ""
    value: Any = None
    value_type: str | None = None
    error: TaskFailure | None = None
    session_state: dict[str, Any] | None = None
    """Top-level keys to merge into the session's state, stored together with the end."""
    terminal_event: EventPayload | None = None
    """The stop event of the workflow. None: the control plane writes one from the error."""


class ClaimRequest(BaseModel):
    """An instance asks to own an attempt."""

    task_id: str
    attempt: int
    instance_id: str


class ClaimReply(BaseModel):
    """The answer to a `ClaimRequest`."""

    granted: bool
    reason: str = ""
    """Why the claim was refused."""
    retriable: bool = False
    """Whether a refused claim may be granted later; otherwise the attempt is nobody's to claim any more."""
    token: str = ""
    session_state: dict[str, Any] = Field(default_factory=dict)
    inbox: list[InboxEntry] = Field(default_factory=list)
    """All events sent to the task so far, in order."""


class ReleaseRequest(BaseModel):
    """An instance hands an attempt back that it will not finish, as it does when it drains."""

    task_id: str
    attempt: int
    token: str


class HeldAttempt(BaseModel):
    """An attempt that an instance works on, in its heartbeat."""

    task_id: str
    attempt: int
    inbox_seq: int = 0
    """The last inbox entry that the instance has seen."""


class Heartbeat(BaseModel):
    """An instance says that it is alive, and what it holds."""

    instance_id: str
    held: list[HeldAttempt] = Field(default_factory=list)


class HeartbeatReply(BaseModel):
    """What the control plane knows that the instance may have missed."""

    known: bool = True
    """False: the control plane does not know the instance; it must register again."""
    stale: list[HeldAttempt] = Field(default_factory=list)
    """Held attempts that the instance does not own (any more): ended, or taken over."""
    cancelled: list[TaskCancellation] = Field(default_factory=list)
    """Held attempts whose cancellation was asked for."""
    inbox: list[InboxEntry] = Field(default_factory=list)
    """Events for held attempts beyond their `inbox_seq`."""


class ReleaseReply(BaseModel):
    """The answer to a `ReleaseRequest`."""

    outcome: Literal["released", "stale"]
