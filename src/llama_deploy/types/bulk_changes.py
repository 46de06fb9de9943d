"""Changes of many tasks at once, on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llama_deploy.types.exact_values import Flag
from llama_deploy.types.ids import generate_id
from llama_deploy.types.keys import Id
from llama_deploy.types.retries import FROM_LAST_STEP
from llama_deploy.types.task_lists import TaskFilter

MAX_BATCH: Final = 500
"""How many tasks one request changes at most."""
DEFAULT_BATCH: Final = 100
MAX_SAMPLE: Final = 20
"""How many tasks a dry run names."""

BulkAction = Literal["cancel", "retry"]


class BulkRequest(BaseModel):
    """The body of `POST /tasks/bulk`: one batch of a change of all tasks that match a filter."""

    # A filter that is misspelt must not match everything.
    model_config = ConfigDict(populate_by_name=True, extra="forbid", hide_input_in_errors=True)

    action: BulkAction
    """`cancel`: open tasks are cancelled. `retry`: ended tasks are retried, each once."""
    filter: TaskFilter = Field(default_factory=TaskFilter)
    """Which tasks. Without `status`: the open ones for `cancel`, and those that have failed or timed out for
    `retry`."""
    all: Flag = False
    """Allows a filter without any condition, which matches the tasks of all services."""
    origin: Literal["start", "last_step"] = Field(default=FROM_LAST_STEP, alias="from")
    """For `retry`: see `TaskRetry.origin`."""
    dry_run: Flag = True
    """Change nothing, and tell what would be changed."""
    limit: int = Field(default=DEFAULT_BATCH, ge=1, le=MAX_BATCH, strict=True)
    """How many tasks to change with this request."""
    bulk_id: Id = Field(default_factory=generate_id)
    """Identifies the whole change. The ids of its retries are derived from it, so that a request that is
    repeated makes no second one."""
    cursor: str | None = Field(default=None, max_length=2000)
    """`next_cursor` of the answer before. None: begin."""

    @model_validator(mode="after")
    def _check_filter(self) -> BulkRequest:
        if not self.all and not self.conditions():
            raise ValueError(
                "the filter has no condition, so it matches the tasks of all services; name a condition, such"
                ' as {"service": "..."}, or set "all" to true'
            )
        return self

    def conditions(self) -> dict[str, Any]:
        """Return the conditions of the filter that are set."""
        return self.filter.model_dump(mode="json", exclude_defaults=True, exclude={"order"})

    def body(self) -> dict[str, Any]:
        """Return the request as JSON."""
        return {
            **self.model_dump(mode="json", by_alias=True),
            "filter": self.filter.model_dump(mode="json", exclude_defaults=True),
        }

    def next_batch(self, result: BulkResult) -> BulkRequest | None:
        """Return the request that follows the answer to this one. None: there is none."""
        if result.next_cursor is None:
            return None
        return self.model_copy(update={"bulk_id": result.bulk_id, "cursor": result.next_cursor})


class BulkItem(BaseModel):
    """What becomes of one task."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    new_task_id: str | None = None
    """The task that retries it. None: none does."""
    reason: str | None = None
    """Why it is skipped. None: it is changed."""


class BulkResult(BaseModel):
    """The answer to a `BulkRequest`."""

    model_config = ConfigDict(frozen=True)

    bulk_id: str
    matched: int
    """How many tasks matched the filter, in this batch. Those accepted since the change began do not."""
    changed: int
    """How many of them were changed, or would be. A request that is repeated tells the same."""
    skipped: int
    """How many were not."""
    items: Sequence[BulkItem]
    """What becomes of each; a dry run names the first ones."""
    next_cursor: str | None = None
    """What to send for the next batch. None: this was the last one."""
