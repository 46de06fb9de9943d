"""A task as one document, for a bug report or a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from pydantic import BaseModel, Field, ValidationError

from llama_deploy.errors import ExportFormatError, InvalidRequestError
from llama_deploy.types.exact_values import Count, Flag, Timestamp
from llama_deploy.types.instance_protocol import RunRecord
from llama_deploy.types.json_values import decode_object
from llama_deploy.types.run_past import PastWrite
from llama_deploy.types.task_lists import EndedStep, TaskDetails
from llama_deploy.types.tasks import TaskEvent
from llama_deploy.types.validation import describe_validation_error
from llama_deploy.types.workflow_shape import WorkflowShape

EXPORT_FORMAT: Final = 1
"""The major version of exports that this release writes, and the greatest one that it reads."""


class ExportedEntry(BaseModel):
    """An event that was sent to the task."""

    seq: Count
    """From 1, without gaps."""
    event: str
    """The `EventDefinition` as JSON."""
    consumed: Flag
    """Whether the run has taken it."""


class TaskExport(BaseModel):
    """All that is stored of a task, as `GET /tasks/{id}/export` returns it. Readers ignore unknown fields."""

    format: Count = EXPORT_FORMAT
    """The major version of this document."""
    exported_at: Timestamp
    task: TaskDetails
    """The task with its arguments, result and error."""
    input: str
    """The run arguments: a JSON object as text."""
    run: RunRecord | None = None
    """The journal of the run. None: nothing of it is stored."""
    past: Sequence[PastWrite] = Field(default_factory=list)
    """What its writes have replaced, from which a copy can be retried from an earlier step."""
    inbox: Sequence[ExportedEntry] = Field(default_factory=list)
    events: Sequence[TaskEvent] = Field(default_factory=list)
    """The stream."""
    steps: Sequence[EndedStep] = Field(default_factory=list)
    """The steps that have ended."""
    shape: WorkflowShape | None = None
    """What the version of the workflow offers that has run the task last. None: it is not known any more."""

    @classmethod
    def read(cls, document: str | Mapping[str, Any]) -> Self:
        """Return a document from its JSON, as text or decoded.

        Raises:
            ExportFormatError: A newer release has written it.
            InvalidRequestError: It is not the document of a task.
        """
        fields = document if isinstance(document, Mapping) else decode_object(document, what="the export")
        found = fields.get("format")
        if found != EXPORT_FORMAT:
            raise ExportFormatError(
                f"the export has format {found!r} and this release reads format {EXPORT_FORMAT}; use the"
                " release that has written it, or a later one"
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as exc:
            raise InvalidRequestError(f"not an exported task: {describe_validation_error(exc)}") from exc
