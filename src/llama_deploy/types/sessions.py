"""Sessions on the wire."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from llama_deploy.types.ids import generate_id
from llama_deploy.types.keys import Id


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


class SessionState(BaseModel):
    """A session's state and its version, for compare-and-set."""

    state: dict[str, Any]
    version: int
    """Starts at 0 and increases by one with every write."""
