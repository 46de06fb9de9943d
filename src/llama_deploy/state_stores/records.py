"""The rows of a state store.

They are named tuples, because a task is copied several times in each transaction: `_replace` takes a tenth of
the time that `dataclasses.replace` takes for a frozen dataclass of this width.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from llama_deploy.state_stores.large_values import Deferred
from llama_deploy.types import Durability, SessionPolicy, TaskStatus
from llama_deploy.types.json_values import utf8_bytes

RUN_FORMAT: Final = 1
"""The major version of runs that this release writes and reads."""

SUSPECT_DEATHS: Final = 2
"""From how many `TaskRecord.deaths` on a task is a suspect, and runs alone in its process."""

NO_STATE: Final = "{}"
"""The state of a new session."""

NO_TAGS: Final = "[]"
"""The `tags` of what has none."""

FIXED: Final = frozenset(
    {
        "session_id",
        "tenant",
        "subject",
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
        "retry_of",
        "retry_from",
        "imported_at",
    }
)
"""The fields of a `TaskRecord` that never change."""


class SessionRecord(NamedTuple):
    """A session."""

    session_id: str
    policy: SessionPolicy
    state: str | Deferred
    """JSON object. Deferred if it is large and the row was read lean."""
    version: int
    """Grows by one with every write of the state."""
    created_at: datetime
    updated_at: datetime
    """When the state was last written."""
    tenant: str = ""
    tags: str = NO_TAGS
    """JSON list of strings."""
    forked_from: str | None = None
    """The session whose state it has begun with. None: its state was empty."""
    forked_at: str | None = None
    """The task of that session after which it was forked. None: its present state was copied."""
    origin: str | None = None
    """The first session of a chain of forks, for which its services have signed what was copied."""
    subject: str | None = None
    """Whose it is within the tenant. None: nobody's in particular, as that of its tasks."""


class SessionHeadRecord(NamedTuple):
    """A session without its state, which may be large."""

    session_id: str
    policy: SessionPolicy
    version: int
    created_at: datetime
    updated_at: datetime
    tags: str
    forked_from: str | None
    forked_at: str | None


class TaskSizeRecord(NamedTuple):
    """Where a task stands in its session, and how large it is."""

    task_id: str
    created_at: datetime
    position: int
    """Grows in the order in which tasks were accepted."""
    characters: int
    """Of its input and its result."""


class SavedStateRecord(NamedTuple):
    """An earlier state of a session."""

    session_id: str
    version: int
    state: str
    """JSON object. Empty: it was too large to be kept."""
    stored_at: datetime
    """Since when the session had it."""


class SessionTagRecord(NamedTuple):
    """A tag of a session, to find it by."""

    tag: str
    """With the tenant of the session, as in the key of an id."""
    session_id: str


class TaskRecord(NamedTuple):
    """A task."""

    task_id: str
    session_id: str
    service_name: str
    input: str | Deferred
    """The run arguments: JSON object. Deferred if they are large and the row was read lean."""
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
    result: str | Deferred | None = None
    """The `TaskResult` as JSON, once the task has ended. Deferred if it is large and the row was read lean.
    """
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
    started_at: datetime | None = None
    """When its first attempt was claimed. None: it was not yet, or under an older release."""
    waiting_since: datetime | None = None
    """Since when it waits for something from outside. None: it does not."""
    progress: str | None = None
    """What its run says of itself. None: nothing."""
    past_attempts: str | None = None
    """The attempts before the present or last one that an instance has had, as a JSON list of `TaskAttempt`.
    None: there are none."""
    last_steps: str | None = None
    """The steps that have ended since the last `StepsRecord`, of an ended task: the `EndedSteps` as JSON."""
    wait_reports: int | None = None
    """How many times the attempt has reported what its run waits for. None: no attempt ever has, so the task
    has no questions."""
    retry_of: str | None = None
    """The ended task that this one tries again. None: it is not a retry."""
    retry_from: str | None = None
    """Where a retry has begun: `start`, `last_step`, or before the step of `retry_of` with this id."""
    imported_at: datetime | None = None
    """When it was imported. None: it has run here."""
    subject: str | None = None
    """That of its session."""

    @property
    def shown_status(self) -> TaskStatus:
        """The status that clients see: a run that waits in the memory of its instance is `waiting`, too."""
        return shown_status(self.status, self.waiting_since)

    @property
    def target(self) -> str:
        """The name of the service that runs the task at the moment."""
        return self.service_name if self.routed_to is None else self.routed_to


def shown_status(status: TaskStatus, waiting_since: datetime | None) -> TaskStatus:
    """Return the status that clients see; see `TaskRecord.shown_status`."""
    is_waiting = status is TaskStatus.RUNNING and waiting_since is not None
    return TaskStatus.WAITING if is_waiting else status


PROGRESS: Final = (
    "stream_length",
    "attempt_events",
    "inbox_length",
    "has_run",
    "journal_length",
    "running_seconds",
    "repeats_from",
    "unfinished",
    "progress",
)
"""The fields of a `TaskRecord` that change while its status stays."""


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

    @property
    def data_bytes(self) -> int:
        """How many bytes the data takes in UTF-8."""
        return utf8_bytes(self.data)


class EventPackRecord(NamedTuple):
    """Consecutive events of a task's stream in a form that takes little space; see `event_packs`."""

    task_id: str
    position: int
    """That of the first event."""
    length: int
    """How many events it holds."""
    format: int
    """The major version of how `data` is to be read."""
    data: bytes


class InboxRecord(NamedTuple):
    """An event that was sent to a task."""

    task_id: str
    seq: int
    """From 1, without gaps."""
    event: str
    """The `EventDefinition` as JSON."""
    idempotency_key: str | None = None
    """Unique among those of the task, None aside."""


class StepsRecord(NamedTuple):
    """Steps of a task that have ended, written together."""

    task_id: str
    attempt: int
    first: int
    """How many steps of the attempt have ended before these."""
    steps: str
    """See `llama_deploy.types.step_history`."""


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
    origin: str | None = None
    """The `RunOrigin` as JSON. None: the run has begun with this task."""
    snapshots: int | None = None
    """How many snapshots were written. None: none, or none but by a control plane of an older release, which
    does not count them."""


class RunPastRecord(NamedTuple):
    """What one write of a run's journal has replaced, for forks from before the write."""

    task_id: str
    seq: int
    """How many entries preceded the write."""
    snapshots: int
    """How many snapshots did."""
    size: int
    """About how many bytes the rest has."""
    state_change: str | None = None
    """A `StateChange` as JSON. None: the write left the state as it was."""
    replaced: bytes | None = None
    """A `ReplacedJournal`, packed. None: the write had no snapshot, or what it replaced was too large."""


class RunCopy(NamedTuple):
    """The run of one task, to be copied for another one."""

    source_id: str
    """The task whose run is copied. It has ended."""
    target_id: str
    """The task that gets the copy. It has no run."""
    origin: str
    """See `RunHeadRecord.origin`."""


class RunSizeRecord(NamedTuple):
    """How much is stored of a run."""

    journal: int
    """How many bytes its snapshot, its needs and its entries have in UTF-8."""
    state: int
    """How many bytes its state has."""
    format: int
    """See `RunHeadRecord.format`."""
    snapshots: int | None = None
    """See `RunHeadRecord.snapshots`."""

    @property
    def size(self) -> int:
        """How many bytes all of it has."""
        return self.journal + self.state


class JournalStartRecord(NamedTuple):
    """What the journal of a run begins with: part of a `RunHeadRecord`."""

    fingerprint: str
    library_version: str
    snapshot: str | None
    needs: str | None


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
    """Whether it runs suspects alone, or waits until it can: by its registration or last heartbeat."""
    version: str | None = None
    """The version of its workflow. None: it has none, or an older release runs it."""
    present: str | None = None
    """The steps that its tasks were running at its last heartbeat: a JSON object with a list of `PresentStep`
    for each task. None: there were none, or it does not say."""

    @property
    def only_suspects(self) -> bool:
        """Whether it never runs anything but suspects. One that makes room for a suspect reports no slots."""
        return self.alone and self.slots != 0
