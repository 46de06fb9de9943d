"""Sessions on the wire."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, Field

from llama_deploy.types.ids import generate_id
from llama_deploy.types.keys import Id
from llama_deploy.types.tags import Tags


class SessionPolicy(StrEnum):
    """What happens to a task that is submitted while an earlier one of its session is open."""

    ENQUEUE = "enqueue"
    """It waits: first in, first out."""
    PARALLEL = "parallel"
    """It runs concurrently with the others."""
    REJECT = "reject"
    """It is rejected with `SessionBusyError`."""
    INTERRUPT = "interrupt"
    """The open ones are cancelled, and it runs as soon as they have ended."""
    PARALLEL_WHILE_WAITING = "parallel_while_waiting"
    """It waits as with `enqueue`, but not for tasks that are `waiting`, for example for a person."""

    @property
    def may_overlap(self) -> bool:
        """Whether tasks of the session may run at the same time, and store each key of `ctx.store` alone."""
        return self in _OVERLAPPING


_OVERLAPPING: Final = frozenset({SessionPolicy.PARALLEL, SessionPolicy.PARALLEL_WHILE_WAITING})


class SessionDefinition(BaseModel):
    """A session: a conversation, which owns state."""

    session_id: str = Field(default_factory=generate_id)
    task_ids: list[str] = Field(default_factory=list)
    """All tasks of the session, in the order in which they were accepted."""
    state: dict[str, Any] = Field(default_factory=dict)
    policy: SessionPolicy = SessionPolicy.ENQUEUE

    @property
    def current_task_id(self) -> str | None:
        """The task accepted last, or None."""
        return self.task_ids[-1] if self.task_ids else None


class SessionOptions(BaseModel):
    """Options for creating a session."""

    session_id: Id | None = None
    """None: the control plane generates an id. The id of an existing session returns that session."""
    policy: SessionPolicy = SessionPolicy.ENQUEUE
    tags: Tags = Field(default_factory=list)
    """Texts by which the session is found. They never change."""


class SessionState(BaseModel):
    """A session's state and its version, for compare-and-set."""

    state: dict[str, Any]
    version: int
    """Starts at 0 and increases by one with every write."""


class SessionSummary(BaseModel):
    """A session in a list, without its tasks and its state."""

    session_id: str
    policy: SessionPolicy
    tags: list[str] = Field(default_factory=list)
    created_at: datetime
    state_version: int
    """See `SessionState.version`."""
    state_changed_at: datetime
    """When the state was last written; `created_at` if it never was."""
    forked_from: str | None = None
    """The session whose state this one has begun with. None: it has begun without."""
    forked_at: str | None = None
    """The task of that session after which it was forked. None: its state at that moment was copied."""


class SessionPage(BaseModel):
    """A page of a list of sessions."""

    items: list[SessionSummary]
    next_cursor: str | None = None
    """Where the next page begins. None: this is the last one."""


class SessionFork(BaseModel):
    """The body of `POST /sessions/{id}/fork`."""

    task_id: Id | None = None
    """The task after which the session is forked. None: after all that have ended."""
    session_id: Id | None = None
    """The id of the new session. Sent again, it does not make another one. None: a random id."""
    policy: SessionPolicy | None = None
    """The policy of the new session. None: that of the forked one."""
    tags: Tags | None = None
    """Its tags. None: those of the forked one."""
