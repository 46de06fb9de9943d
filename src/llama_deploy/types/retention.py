"""How long ended tasks are kept, and what of a store is removed on request."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from llama_deploy.types.exact_values import Flag
from llama_deploy.types.keys import Id
from llama_deploy.types.tasks import TaskStatus

MAX_DAYS = 36_500.0
"""The most days of a setting: a hundred years."""

Days = Annotated[float, Field(ge=0, le=MAX_DAYS, allow_inf_nan=False)]
"""A time in days. 0: at once."""
KeptDays = Days | Literal["off"]
"""A time in days after which something is removed. `off`: it is kept."""


def _terminal(status: TaskStatus) -> TaskStatus:
    if not status.is_terminal:
        raise ValueError(
            f"a task that is {status.value} has not ended, and only ended tasks are removed; use succeeded,"
            " failed, cancelled or timed_out"
        )
    return status


EndedStatus = Annotated[TaskStatus, AfterValidator(_terminal)]
"""A status of a task that has ended."""


class RetentionRule(BaseModel):
    """How long some ended tasks are kept. The first rule that matches a task counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    status: tuple[EndedStatus, ...] = ()
    """The statuses of the tasks. Empty: all."""
    service: str | None = Field(default=None, min_length=1)
    """The service that they were submitted to. None: all."""
    session: Id | None = None
    """Their session. None: all."""
    task_days: KeptDays | None = None
    """For how many days they are kept. None: as `retention_task_days` says."""
    event_days: KeptDays | None = None
    """For how many days their events are kept. None: as `retention_event_days` says."""
    max_tasks: int | None = Field(default=None, ge=1)
    """How many of the ended tasks that match are kept. None: any number."""
    journals: bool | None = None
    """Whether the journals of those that succeed are kept. None: as `retention_journals` says."""


class PurgeRequest(BaseModel):
    """The body of `POST /storage/purge`: which ended tasks to remove now."""

    model_config = ConfigDict(extra="forbid")

    older_than_seconds: float | None = Field(
        default=None, ge=0, le=MAX_DAYS * 86_400, allow_inf_nan=False, strict=True
    )
    """How long ago they must have ended. None: `retention_task_days`."""
    status: list[EndedStatus] = Field(default_factory=list, max_length=4)
    """Only tasks with these statuses. Empty: all."""
    service: str | None = Field(default=None, min_length=1, max_length=200)
    """Only tasks that were submitted to this service."""
    dry_run: Flag = False
    """Count the tasks, and remove nothing."""
    limit: int = Field(default=1000, ge=1, le=10_000, strict=True)
    """How many tasks one request removes at most."""


class PurgeCount(BaseModel):
    """Ended tasks of one service with one status."""

    service_name: str
    status: TaskStatus
    tasks: int
    oldest: datetime
    """When the first of them ended."""


class PurgeAnswer(BaseModel):
    """What a purge has removed, or would remove."""

    dry_run: bool
    before: datetime
    """Tasks that ended before this time are meant."""
    removed: int = 0
    """How many tasks this request has removed."""
    more: bool = False
    """Whether there may be more of them: send the request again."""
    matching: list[PurgeCount] = Field(default_factory=list)
    """Of a dry run: the tasks that would be removed."""


class TableSize(BaseModel):
    """The size of one table."""

    name: str
    rows: int | None = None
    """How many rows it has; of PostgreSQL an estimate. None: counting would take long."""
    bytes: int | None = None
    """How many bytes it takes with its indexes. None: measuring would take long, or is not possible."""


class StorageView(BaseModel):
    """The answer to `GET /storage`: how much a store holds."""

    store: str
    """The kind of store, such as `sqlite`."""
    total_bytes: int | None = None
    """All that the store takes on its disk. None: not known."""
    free_bytes: int | None = None
    """How much of that is free for new rows. None: not known."""
    log_bytes: int | None = None
    """How much of it is the write-ahead log of SQLite. None: there is none."""
    tables: list[TableSize] = Field(default_factory=list)
    """The largest first."""
    oldest_ended: dict[str, datetime] = Field(default_factory=dict)
    """When the oldest task of each status ended that is still stored."""
    removed_tasks: bool = False
    """Whether any task was removed whose id is still remembered."""
    retention: dict[str, Any] = Field(default_factory=dict)
    """The settings of retention."""
