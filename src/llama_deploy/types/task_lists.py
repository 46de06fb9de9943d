"""Lists of tasks on the wire: what is asked for, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llama_deploy.types.exact_values import Count, Timestamp
from llama_deploy.types.keys import Id
from llama_deploy.types.questions import Question
from llama_deploy.types.tags import MAX_TAGS, Tag
from llama_deploy.types.tasks import TaskFailure, TaskStatus, TaskView

MAX_PROGRESS_CHARACTERS: Final = 500
"""How long the text may be with which a run tells its progress."""
MAX_PAGE: Final = 1000
"""How many tasks a page of a list may have."""
DEFAULT_PAGE: Final = 50

TaskOrder = Literal["newest", "oldest", "id"]
"""By their creation, or by their id. Tasks are listed by id if the filter has `q`."""
CountBy = Literal["status", "service"]


class TaskFilter(BaseModel):
    """Which tasks are listed, and in which order: all conditions have to hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    status: tuple[TaskStatus, ...] = ()
    """Tasks with one of these. Empty: with any."""
    service: str | None = Field(default=None, max_length=200)
    """The service to which they were submitted."""
    session: Id | None = None
    tag: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    """Tasks that have all of these."""
    parent: Id | None = None
    """Tasks that a step of this task has submitted."""
    created_after: Timestamp | None = None
    """Tasks that were accepted at this time or later."""
    created_before: Timestamp | None = None
    """Tasks that were accepted before this time."""
    q: str | None = Field(default=None, min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")
    """The characters with which the id begins."""
    order: TaskOrder | None = None
    """None: by id with `q`, otherwise the newest first."""

    @model_validator(mode="after")
    def _check_order(self) -> TaskFilter:
        if (self.q is not None) != (self.order == "id") and self.order is not None:
            raise ValueError(
                "tasks are listed by id if `q` is given, and only then: leave out `order`, or send `newest`"
                " or `oldest` without `q`"
            )
        return self

    @property
    def ordered_by(self) -> TaskOrder:
        """The order in use."""
        return self.order or ("newest" if self.q is None else "id")

    def identity(self) -> dict[str, Any]:
        """Return what makes two filters equal, as JSON: the statuses and tags sorted, the order filled in."""
        facts = self.model_dump(mode="json", exclude_none=True)
        sets = {name: sorted(set(facts[name])) for name in ("status", "tag")}
        return {**facts, **sets, "order": self.ordered_by}


class TaskAttempt(BaseModel):
    """One attempt of a task that an instance has had."""

    model_config = ConfigDict(frozen=True)

    attempt: Count
    """Its number. An attempt that no instance has claimed is left out."""
    instance_id: str | None = None
    began_at: Timestamp | None = None
    """When the instance has claimed it."""
    ended_at: Timestamp | None = None
    """None: it is under way."""
    end: str | None = None
    """How it has ended: with a status of the task, such as `succeeded` or `waiting` if the run was parked; or
    with why the next one took over, see `NewAttempt.reason`. None: it is under way."""


class EndedStep(BaseModel):
    """A step of a run that has ended. Newer releases may add fields."""

    model_config = ConfigDict(frozen=True)

    step: str
    """The name of the method."""
    attempt: Count
    """The attempt in which it ran."""
    began_at: Timestamp
    """By the clock of the instance."""
    ended_at: Timestamp
    events: Count = 0
    """How many events it has streamed."""
    error: str | None = None
    """The class of the exception that it has raised. None: it has returned."""
    step_id: str | None = None
    """Identifies this run of the step within the task; a retry may begin before it."""
    point: str | None = None
    """Where the journal of the run was when it began; opaque. None: not known."""


class PresentStep(BaseModel):
    """A step that runs at the moment."""

    model_config = ConfigDict(frozen=True)

    step: str
    began_at: Timestamp | None = None
    """By the clock of the instance."""


class TaskDetails(TaskView):
    """A task with all that is known of it.

    A list leaves out `arguments`, `result`, `attempts`, `steps`, `questions` and `children`, which may be
    large.
    """

    model_config = ConfigDict(frozen=True)

    since: Timestamp | None = None
    """Since when it has its status."""
    started_at: Timestamp | None = None
    """When the first attempt has begun."""
    waiting_since: Timestamp | None = None
    """Since when its run waits for something from outside. None: it does not."""
    waits_for: str | None = None
    """What it waits for, in words. None: it is running or has ended."""
    progress: str | None = None
    """What its run says of itself."""
    tags: list[str] = Field(default_factory=list)
    parent_task_id: str | None = None
    """The task whose step has submitted this one."""
    retry_of: str | None = None
    """The ended task that this one tries again."""
    retry_from: str | None = None
    """Where a retry has begun: `start`, `last_step`, or before the step of `retry_of` with this id."""
    imported_at: Timestamp | None = None
    """When it was imported from elsewhere. None: it has run here."""
    error: TaskFailure | None = None
    """Why it did not succeed."""
    arguments: dict[str, Any] | None = None
    """The run arguments."""
    present_steps: list[PresentStep] | None = None
    """The steps that were running at the last heartbeat of its instance. None: not known."""
    steps: list[EndedStep] | None = None
    """The steps that have ended, the first ones. `GET /tasks/{id}/steps` has all."""
    attempts: list[TaskAttempt] | None = None
    """The last attempts, oldest first."""
    questions: list[Question] | None = None
    """Its open questions, the first ones. `GET /tasks/{id}/questions` has more."""
    children: list[str] | None = None
    """The ids of the first tasks that its steps have submitted, oldest first."""


class TaskPage(BaseModel):
    """A page of a list of tasks."""

    model_config = ConfigDict(frozen=True)

    items: Sequence[TaskDetails]
    """They may be fewer than asked for, or none, although more follow: see `next_cursor`."""
    next_cursor: str | None = None
    """Where the next page begins. None: this is the last one."""


class TaskCount(BaseModel):
    """How many tasks have a status, or belong to a service, or both."""

    model_config = ConfigDict(frozen=True)

    status: TaskStatus | None = None
    """None: not counted by status."""
    service: str | None = None
    """None: not counted by service."""
    count: int


class TaskCounts(BaseModel):
    """How many tasks there are."""

    model_config = ConfigDict(frozen=True)

    items: Sequence[TaskCount]


class StepPage(BaseModel):
    """A page of the steps of a task that have ended."""

    model_config = ConfigDict(frozen=True)

    items: Sequence[EndedStep]
    next_cursor: str | None = None
    """Where the next page begins. None: this is the last one."""
