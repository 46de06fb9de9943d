"""Retries of tasks on the wire."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from llama_deploy.types.ids import generate_id
from llama_deploy.types.keys import Id

FROM_START: Final = "start"
"""The new task runs all steps."""
FROM_LAST_STEP: Final = "last_step"
"""The new task goes on after the last finished step of the ended one."""


class TaskRetry(BaseModel):
    """The body of `POST /tasks/{id}/retry`."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    origin: str = Field(default=FROM_LAST_STEP, alias="from", min_length=1, max_length=200)
    """Where the new task begins: `start`, `last_step`, or the `step_id` of a step that has ended: it and what
    followed run again."""
    arguments: dict[str, Any] | None = None
    """The run arguments of the new task, only from `start`. None: those of the ended one."""
    task_id: Id = Field(default_factory=generate_id)
    """The id of the new task, and the idempotency key: the same retry again returns the same new task."""
