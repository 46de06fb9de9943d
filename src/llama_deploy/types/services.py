"""Services and their instances on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, Field

from llama_deploy.printable import has_controls
from llama_deploy.types.exact_values import Count, Flag, Seconds, Timestamp
from llama_deploy.types.json_values import JsonObject
from llama_deploy.types.keys import Id
from llama_deploy.types.sessions import SessionPolicy
from llama_deploy.types.workflow_shape import WorkflowShape

Port = Annotated[int, Field(ge=0, le=65535, strict=True)]


MAX_NAME_LENGTH: Final = 200
"""The most characters in a service name."""


def check_service_name(name: str) -> str:
    """Return a service name if it can be one.

    Raises:
        ValueError: It is empty, too long, `.` or `..`, or has control characters.
    """
    if not 0 < len(name) <= MAX_NAME_LENGTH:
        raise ValueError(f"a service name has 1 to {MAX_NAME_LENGTH} characters, not {len(name)}")
    if name in {".", ".."} or has_controls(name):
        raise ValueError(
            f"{name!r} cannot be a service name: it must not be . or .. and must not have control characters"
        )
    return name


ServiceName = Annotated[str, AfterValidator(check_service_name)]
"""The name of a service: any text without control characters."""


MAX_BLOCKED_TEXT: Final = 500
"""The most characters in each text of a `BlockedStep`."""
_Text = Annotated[str, Field(max_length=MAX_BLOCKED_TEXT)]


class BlockedStep(BaseModel):
    """What blocks the event loop of an instance, so that all its other tasks wait."""

    task_id: _Text | None = None
    """The task. None: not known, because it is no step of a workflow."""
    step: _Text | None = None
    """The name of the step. None: the same."""
    seconds: Seconds
    """For how long."""
    place: _Text = ""
    """The line that is executed, as `file:line`."""

    def __str__(self) -> str:
        place = f" at {self.place}" if self.place else ""
        if self.step is None:
            return f"blocked for {self.seconds:.0f} s by code{place}"
        task = "" if self.task_id is None else f" of task {self.task_id}"
        return f"blocked for {self.seconds:.0f} s by step {self.step!r}{task}{place}"


class InstanceInfo(BaseModel):
    """One running copy of a service."""

    instance_id: str
    host: str | None = None
    port: Port | None = None
    alive: Flag = True
    """Whether its lease has not expired."""
    last_heartbeat: Timestamp
    slots: Count | None = None
    """The maximum number of its concurrent tasks; 0 if it is about to stop, or takes none until a suspect has
    run. None: not reported yet."""
    running: Count | None = None
    """How many tasks it was running at its last heartbeat. None: not reported yet."""
    blocked: list[BlockedStep] = Field(default_factory=list)
    """What blocked it at its last heartbeat. Empty: nothing."""
    version: str | None = None
    """The version of its workflow, a digest of what it offers to runs. None: it has none."""


class StrandedTasks(BaseModel):
    """Tasks that no living instance can run."""

    count: Count
    reason: str
    """Why, in words: which step, class or field of which version does not fit."""


class ServiceDefinition(BaseModel):
    """A service as it registers and as it is listed."""

    service_name: ServiceName
    description: str = ""
    prompt: list[Any] = Field(default_factory=list)
    """Kept for the 0.6 API."""
    host: str | None = None
    port: Port | None = None
    instance_id: Id | None = None
    """Set by an instance that registers itself. None: registers the service name only."""
    process_id: Id | None = None
    """The process of the instance, an id made once for each. None: not known."""
    session_policy: SessionPolicy | None = None
    """The policy of a session that begins with a task of the service. None: `enqueue`."""
    input_schema: JsonObject | None = None
    """The JSON schema of the run arguments."""
    output_schema: JsonObject | None = None
    """The JSON schema of the result."""
    input_check: JsonObject | None = None
    """A JSON schema that all run arguments satisfy which the service accepts. Other tasks are refused.

    Types are read as pydantic does: a number may be given as a string. A key that is nearly the name of a
    missing field is refused too. None: `input_schema` only describes them, and nothing is checked.
    """
    accepted_events: list[str] | None = None
    """Qualified names of the event classes that a running workflow accepts. None: not known; accepts all."""
    event_schemas: dict[str, JsonObject] | None = None
    """JSON schemas for the fields of accepted events, by qualified name. They are checked as `input_check`.

    A class that is not among them may have any fields.
    """
    question_events: list[str] | None = None
    """Class names of the events that ask for an answer when they are streamed. None: not known."""
    answer_events: list[str] | None = None
    """Class names of the events that answer a question, as far as they are declared. None: not known."""
    slots: int | None = Field(default=None, ge=0, le=2**31 - 1, strict=True)
    """The maximum number of concurrent tasks of an instance. It is listed with the instance."""
    alone: Flag = False
    """Whether the instance only runs tasks whose processes have died repeatedly. It is not listed."""
    workflow: WorkflowShape | None = None
    """What the workflow of an instance offers to runs that other versions have begun. It is not listed."""
    instances: list[InstanceInfo] = Field(default_factory=list)
    """Filled in by the control plane. If there are many, some of them: the blocked and living ones first."""
    instances_total: Count | None = None
    """How many instances there are, filled in by the control plane. None: `instances` has all."""
    instances_alive: Count | None = None
    """How many of them are alive. None: as many as in `instances`."""
    stranded: list[StrandedTasks] = Field(default_factory=list)
    """Filled in by the control plane: queued and waiting tasks that no living instance can run."""

    def count_alive(self) -> int:
        """Return how many instances are alive."""
        if self.instances_alive is not None:
            return self.instances_alive
        return sum(instance.alive for instance in self.instances)


class ServiceBacklog(BaseModel):
    """How much work waits for a service, and what its living instances can take. Always numbers."""

    queued: int = 0
    """Tasks that an instance may take now. Those that wait for an earlier task of their session do not count.
    """
    running: int = 0
    waiting: int = 0
    """Tasks that only wait for something from outside."""
    stranded: int = 0
    """Those of the queued and waiting ones that no living instance can run."""
    oldest_queued_seconds: float = 0.0
    """For how long the oldest of the queued tasks has been queued. 0: there are none."""
    slots: int = 0
    """How many tasks the living instances can run at the same time. One that stops has none."""
    slots_used: int = 0
    """How many attempts they hold, waiting ones included; more than `slots` while one stops."""


class Registration(BaseModel):
    """The answer to the registration of an instance."""

    topic_namespace: str = "llama_deploy"
    """The first part of every topic's name."""
    protocol: int = 1
    """The version of the protocol for instances that the control plane speaks, see `PROTOCOL_VERSION`."""
    lease_seconds: float = Field(default=5.0, gt=0)
    """How long the instance may be silent before its tasks move on."""
