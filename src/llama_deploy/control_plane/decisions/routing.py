"""The route of a task that an orchestrator sends from service to service, as its row keeps it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field

from llama_deploy.state_stores.large_values import Deferred, text_of
from llama_deploy.state_stores.records import TaskRecord
from llama_deploy.types.instance_protocol import AttemptOutcome


class Hop(BaseModel):
    """One part of a route: a service that runs the task."""

    service_name: str
    input: str
    """The run arguments: a JSON object as text."""


class Routing(BaseModel):
    """What is known of a task's route. The name of the current service is `TaskRecord.routed_to`."""

    input: str | None = None
    """The run arguments of the current hop. None: there was no hop yet."""
    waiting: list[Hop] = Field(default_factory=list)
    """Hops that the orchestrator has named and that come first."""
    outcome: AttemptOutcome | None = None
    """How the last hop has ended, until the orchestrator has said what follows."""
    stream_start: int = 0
    """Where in the task's stream the events of the current hop begin."""

    @classmethod
    def of(cls, task: TaskRecord) -> Self:
        """Return the route of a task, which must have one."""
        return cls.model_validate_json(task.routing or "{}")

    def encode(self) -> str:
        """Return the form that the row of a task keeps."""
        return self.model_dump_json(exclude_defaults=True)


NEW_ROUTE = Routing().encode()
"""The route of a task that the orchestrator was not asked about yet."""


def run_input(task: TaskRecord) -> str:
    """Return the run arguments of the attempt under way: a JSON object as text.

    Raises:
        ValueNotReadError: They were deferred.
    """
    return text_of(run_input_of_lean(task))


def run_input_of_lean(task: TaskRecord) -> str | Deferred:
    """Return the same of a task that was read lean."""
    routed = Routing.of(task).input if task.routing is not None else None
    return task.input if routed is None else routed
