"""The rows of a state store.

They are named tuples, because a task is copied several times in each transaction: `_replace` takes a tenth of
the time that `dataclasses.replace` takes for a frozen dataclass of this width.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from llama_deploy.types import Durability, SessionPolicy, TaskStatus

RUN_FORMAT: Final = 1
"""The major version of runs that this release writes and reads."""

SUSPECT_DEATHS: Final = 2
"""From how many `TaskRecord.deaths` on a task is a suspect, and runs alone in its process."""

FIXED: Final = frozenset(
    {
        "session_id",
        "tenant",
        "service_name",
        "input",
        "created_at",
        "trace",
        "parent_task_id",
        "root_task_id",
        "tags",
        "priority",
        "not_before",
        "deadline",
    }
)
"""The fields of a `TaskRecord` that never change."""


class SessionRecord(NamedTuple):
    """A session."""

    session_id: str
    policy: SessionPolicy
    state: str
    """JSON object."""
    version: int
    """Grows by one with every write of the state."""
    created_at: datetime
    updated_at: datetime
    """When the state was last written."""
    tenant: str = ""


class TaskRecord(NamedTuple):
    """A task."""

    task_id: str
    session_id: str
    service_name: str
    input: str
    """The run arguments: JSON object."""
    status: TaskStatus
    created_at: datetime
    status_changed_at: datetime
    max_attempts: int
    tenant: str = ""
    trace: str | None = None
    """The W3C `traceparent` of the submission."""
    parent_task_id: str | None = None
    """The task whose step has submitted this one."""
    root_task_id: str | None = None
    """The first task of the tree of parents."""
    tags: str = "[]"
    """JSON list of strings."""
    priority: int = 0
    not_before: datetime | None = None
    """Until when the task is held back."""
    deadline: datetime | None = None
    """When the task must have ended."""
    attempt: int = 1
    """The attempt under way, or the next one if none is."""
    losses: int = 0
    """How many deaths of processes were charged to the task and not forgiven since; see
    `lifecycle.journal`."""
    deaths: int = 0
    """At how many deaths of processes the task was present since it was forgiven; see `decisions.deaths`."""
    instance_id: str | None = None
    token: str | None = None
    """The secret of the attempt under way."""
    claimed_at: datetime | None = None
    redispatch_at: datetime | None = None
    """When the attempt is published again if no instance has claimed it; of a pending task, since when it
    waits for the orchestrator."""
    dispatches: int = 0
    """How often the attempt under way was published."""
    stream_length: int = 0
    """How many events the task's stream has."""
    attempt_events: int = 0
    """How many of them came from the attempt under way."""
    inbox_length: int = 0
    """How many events were sent to the task."""
    has_run: bool = False
    """Whether something of its run is stored: a `RunHeadRecord` and entries of its journal."""
    journal_length: int = 0
    """How many entries the journal of its run has had, including those that a snapshot has replaced."""
    running_seconds: float = 0.0
    """How long its run has been running according to the journal, without the time in which it waited."""
    wake_at: datetime | None = None
    """When a parked run is woken. None: only an event wakes it."""
    cancel_requested: bool = False
    finished_at: datetime | None = None
    result: str | None = None
    """The `TaskResult` as JSON, once the task has ended."""
    durability: Durability | None = None
    """The `Durability` of the last attempt, once there is one."""
    volatile_reason: str | None = None
    """Why the run is volatile, in words."""
    routed_to: str | None = None
    """The service of the current part of a route. None: `service_name`."""
    routing: str | None = None
    """The `Routing` of a task that an orchestrator sends from service to service, as JSON. None: it has no
    route, or has ended."""
    cancel_requested_at: datetime | None = None
    """When `cancel_requested` was set. None: it is not, or an older release has set it."""
    repeats_from: int | None = None
    """The position in the stream from which on events may come again if the attempt under way is lost. None:
    there was no attempt yet, or an older release has granted it."""
    unfinished: str | None = None
    """Which of these events come again: the `UnfinishedSteps` as JSON. None: all of them."""
    takeovers: str | None = None
    """The attempts that have taken over from lost ones, as a JSON list of `NewAttempt`. None: there are none.
    """
    version: str | None = None
    """The version of the workflow that has claimed the task last. None: no version is known."""
    pinned_to: str | None = None
    """The only version that may claim the task, because somebody has moved it there. None: any that fits."""

    @property
    def target(self) -> str:
        """The name of the service that runs the task at the moment."""
        return self.service_name if self.routed_to is None else self.routed_to


PROGRESS: Final = (
    "stream_length",
    "attempt_events",
    "inbox_length",
    "has_run",
    "journal_length",
    "running_seconds",
    "repeats_from",
    "unfinished",
)
"""The fields of a `TaskRecord` that `TaskRepository.update_progress` overwrites."""


class EventRecord(NamedTuple):
    """One event of a task's stream."""

    task_id: str
    position: int
    """From 0, without gaps."""
    type: str
    data: str
    """JSON object."""
    terminal: bool = False
    attempt: int | None = None
    """The attempt that has written it. None: an older release has stored it."""
    step_run: int | None = None
    """See `EventPayload.step_run`."""


class InboxRecord(NamedTuple):
    """An event that was sent to a task."""

    task_id: str
    seq: int
    """From 1, without gaps."""
    event: str
    """The `EventDefinition` as JSON."""
    idempotency_key: str | None = None
    """Unique among those of the task, None aside."""


class RunHeadRecord(NamedTuple):
    """What a run resumes from, together with the journal entries after it."""

    task_id: str
    fingerprint: str
    library_version: str
    snapshot: str | None = None
    state: str | None = None
    format: int = RUN_FORMAT
    """The major version of how snapshot, state and entries are to be read."""
    needs: str | None = None
    """The `RunNeeds` as JSON. None: an older release has written the run."""


class RunNeedsRecord(NamedTuple):
    """What a run needs of the version that resumes it: part of a `RunHeadRecord`."""

    fingerprint: str
    needs: str | None


class RunGroupRecord(NamedTuple):
    """Tasks in the status `queued` or `waiting` that not every version can run, counted."""

    service_name: str
    """`TaskRecord.target`."""
    version: str | None
    pinned_to: str | None
    fingerprint: str | None
    """None: nothing is stored of their runs."""
    needs: str | None
    task_count: int


class JournalRecord(NamedTuple):
    """One entry of a run's journal."""

    task_id: str
    seq: int
    """From 0. Entries before the current snapshot are deleted."""
    entry: str


class OutboxRecord(NamedTuple):
    """A message that is to be published, stored in the same transaction as the change that it reports."""

    message_id: str
    topic: str
    message: str
    """The `QueueMessage` in its wire form."""
    relay_at: datetime | None = None
    """When another control plane may publish it. None: at once."""


class ServiceRecord(NamedTuple):
    """A service."""

    service_name: str
    definition: str
    """The `ServiceDefinition` as JSON, without instances."""
    tenant: str = ""


class VersionRecord(NamedTuple):
    """A version of a service's workflow."""

    service_name: str
    version: str
    shape: str
    """The `WorkflowShape` as JSON."""


class InstanceRecord(NamedTuple):
    """A running copy of a service."""

    instance_id: str
    service_name: str
    host: str | None
    port: int | None
    last_heartbeat: datetime
    lease_expires_at: datetime
    slots: int | None = None
    """The maximum number of its concurrent tasks. 0: it takes no more. None: not reported yet."""
    running: int | None = None
    """How many tasks it was running at its last heartbeat. None: not reported yet."""
    blocked: str | None = None
    """What blocked it at its last heartbeat: a JSON list of `BlockedStep`. None: nothing."""
    process_id: str | None = None
    """The process that it lives in, whose instances die together. None: not known, from an older release."""
    waiting: str | None = None
    """Its tasks that only waited at its last heartbeat: a JSON object with the last inbox entry that each has
    seen. None: there were none."""
    alone: bool = False
    """Whether it runs suspects alone, or waits until it can, by its registration or last heartbeat."""
    version: str | None = None
    """The version of its workflow. None: it has none, or an older release runs it."""

    @property
    def only_suspects(self) -> bool:
        """Whether it never runs anything but suspects. One that makes room for a suspect reports no slots."""
        return self.alone and self.slots != 0
