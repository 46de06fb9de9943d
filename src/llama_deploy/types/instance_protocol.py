"""The protocol between service instances and the control plane.

An attempt is one try at a task, numbered from 1. The instance that claims it gets a secret `token`, and the
control plane rejects everything that is sent for the attempt without it.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, Field, model_validator

from llama_deploy.errors import ProtocolVersionError
from llama_deploy.types.exact_values import MAX_NUMBER, Count, Flag, Integer, Seconds, Timestamp
from llama_deploy.types.questions import WaitReport
from llama_deploy.types.repeated_text import Part, whole
from llama_deploy.types.services import BlockedStep
from llama_deploy.types.step_history import EndedSteps
from llama_deploy.types.task_lists import PresentStep
from llama_deploy.types.tasks import Durability, EventDefinition, TaskFailure, TaskResult, TaskStatus
from llama_deploy.types.workflow_shape import RunNeeds

PROTOCOL_VERSION: Final = 1
"""The major version of this protocol.

Within a major version, releases only add fields, which an older side ignores. A change that an older side
cannot understand increments it. Sides of different major versions reject each other, and tasks wait for
instances that match.
"""
PROTOCOL_HEADER: Final = "LlamaDeploy-Protocol"
"""Names the version in every request of an instance."""
MAX_REPORT_BYTES: Final = 192 * 1024
"""How large a report may be to travel over the queue; a larger one is uploaded through the gateway.

Below the smallest limit of the brokers, which is the 256 KiB of some queues of SQS.
"""
MAX_EVENT_CHARACTERS: Final = 32 * 1024
"""How large an event for a running workflow may be to travel over the queue.

A larger one travels with the answer to a heartbeat. In UTF-8, and as a string within JSON, it stays below the
limit of every broker.
"""
MAX_INSTANCES_OF_PROCESS: Final = 1000
"""How many instances, and how many culprits, a `ProcessDeath` may name."""
MAX_REASON_CHARACTERS: Final = 500
"""How long the reason of a `ProcessDeath` may be."""
MAX_BLOCKED_STEPS: Final = 100
"""How many steps that block an instance a heartbeat may name."""
INPUT_REJECTED: Final = "InputRejectedEvent"
"""The type of the streamed event that tells that an event sent to a task was not accepted.

Its data has the class of that event (`event`), the `reason`, and its `idempotency_key`.
"""
BEATS_PER_LEASE: Final = 3
"""How many heartbeats an instance sends while its lease lasts."""
BEAT_TIMEOUT: Final = 5.0
"""Timeout of a heartbeat in seconds. Shorter if another replica of the control plane can be tried."""


def check_protocol(version: int | str, *, peer: str) -> None:
    """Raise `ProtocolVersionError` if the other side speaks another major version.

    Args:
        version: What it has sent.
        peer: Names it in the error, such as `the instance`.
    """
    if str(version) != str(PROTOCOL_VERSION):
        raise ProtocolVersionError(
            f"{peer} speaks version {version} of the protocol between instances and control planes, but"
            f" this side speaks version {PROTOCOL_VERSION}; upgrade the older of the two",
            version=version,
            supported=PROTOCOL_VERSION,
        )


class AttemptReference(BaseModel):
    """Names an attempt."""

    task_id: str
    attempt: Count


class OwnedAttempt(AttemptReference):
    """The attempt that its owner reports on or asks about."""

    token: str
    """Proves the ownership."""


class TaskDispatch(BaseModel):
    """Data of a `new_task` message: an attempt that any instance of the service may claim."""

    task_id: str
    session_id: str
    agent_id: str
    """The name of the service."""
    attempt: Count


class InboxEntry(BaseModel):
    """Data of a `send_event` message: an event for a running workflow."""

    task_id: str
    seq: Count
    """Position in the task's inbox, from 1. The receiver ignores an entry that it has seen."""
    event: EventDefinition


class TaskCancellation(AttemptReference):
    """Data of a `cancel_task` message."""


class EventPayload(BaseModel):
    """A streamed event without its position in the stream."""

    type: str
    data: dict[str, Any]
    step_run: Integer | None = None
    """The number of the step run that has streamed it, in the attempt; -1 for none. None: not known."""


class AttemptEvents(OwnedAttempt):
    """Data of a `task_stream` message: events that an attempt streamed."""

    first: Count
    """How many events of this attempt were sent before these; shows duplicates and gaps."""
    events: list[EventPayload]
    waits: WaitReport | None = None
    """What the run waits for, if that has changed. It counts in a `task_stream` message and in a write of the
    journal."""
    progress: str | None = None
    """What the run says of its progress from now on. None: the same as before."""


class AttemptOutcome(AttemptEvents):
    """Data of a `completed_task` message: the attempt's last events and how it ended."""

    status: TaskStatus
    """A terminal status."""
    result: str | None = None
    """The result as text. None: it follows from the other fields, see `text`."""
    text_parts: list[Part] | None = None
    """The result as text, if it is large and most of it is in the value; see `repeated_text`."""
    value: Any = None
    value_type: str | None = None
    error: TaskFailure | None = None
    history: list[Any] | None = None
    """See `TaskResult`. None: empty."""
    data: dict[str, Any] | None = None
    """See `TaskResult`. None: empty."""
    session_state: dict[str, Any] | None = None
    """Top-level keys to merge into the session's state, stored together with the end."""
    terminal_event: EventPayload | None = None
    """The stop event of the workflow. None: the control plane derives one from the error."""
    event_value: Literal["result", "data"] | None = None
    """Where the stop event repeats the value, which travels once: as its field `result`, or as its data."""
    steps: EndedSteps | None = None
    """The steps that have ended and that no journal write has told. None: none, or an older release."""

    @model_validator(mode="after")
    def _check_text_parts(self) -> Self:
        if self.text_parts is not None:
            whole(self.text_parts, self.value)
        return self

    @property
    def text(self) -> str:
        """The result as text; of a failure, its message."""
        if self.result is not None:
            return self.result
        if self.status is not TaskStatus.SUCCEEDED:
            return self.error.message if self.error is not None else ""
        if self.text_parts is not None:
            return whole(self.text_parts, self.value)
        return json.dumps(self.value) if self.event_value == "data" else str(self.value)

    @property
    def task_result(self) -> TaskResult:
        """The result of the task that ends with this."""
        return TaskResult(
            task_id=self.task_id,
            history=self.history or [],
            result=self.text,
            data=self.data or {},
            status=self.status,
            value=self.value,
            value_type=self.value_type,
            error=self.error,
            attempts=self.attempt,
        )

    @property
    def stop_event(self) -> EventPayload | None:
        """The whole stop event."""
        event = self.terminal_event
        if event is None or self.event_value is None:
            return event
        fields = self.event_value == "data" and isinstance(self.value, dict)
        data = self.value if fields else {**event.data, "result": self.value}
        return EventPayload.model_construct(type=event.type, data=data)


class RunHeader(BaseModel):
    """What wrote a run's journal."""

    fingerprint: str
    """A digest of the workflow's steps and events."""
    library_version: str
    """The version of the workflow library."""


class Parking(BaseModel):
    """The run only waits for an event or a timer, and leaves its instance until then."""

    inbox_seq: Count
    """The last inbox entry that the run has seen. A later one wakes it at once."""
    wake_in: Seconds | None = None
    """Seconds until the next timer of the run. None: no timer."""


class UnfinishedSteps(BaseModel):
    """The runs of steps that run again if the attempt is lost. Events and runs are counted in the attempt."""

    first_event: Count
    """How many events the attempt had streamed when the oldest of them began."""
    runs: list[Integer] | None = None
    """Their numbers, as in `EventPayload.step_run`. None: they are too many to be listed."""
    begun: Count = 0
    """How many runs of steps have begun. Those that begin later are unfinished too."""


class JournalWrite(AttemptEvents):
    """One step of a run's journal, stored in one transaction or not at all.

    The journal belongs to the task and grows over its attempts. Sending the same write again is harmless.
    Send the writes of a task one at a time, each after the reply to the one before.
    """

    seq: Count
    """How many entries precede this write, counted from the first attempt."""
    entry: str | None = None
    """The entry to append, opaque to the control plane. None: no entry."""
    snapshot: str | None = None
    """Replaces all entries before `seq`. None: they stay."""
    state: str | None = None
    """The run's state if it has changed, opaque to the control plane."""
    snapshots: Annotated[int, Field(ge=0, lt=MAX_NUMBER, strict=True)] | None = None
    """How many snapshots precede this write. None: an older release does not count them."""
    state_change: str | None = None
    """With a `state`: how it leads back to the one before, a `StateChange` as JSON. None: it is too large."""
    consumed: list[Count] = Field(default_factory=list)
    """The inbox entries that the run has consumed. Later attempts do not receive them."""
    step_ended: Flag = False
    """Whether this records the end of a step for the first time."""
    unfinished: UnfinishedSteps | None = None
    """The steps whose end is not stored with this write or before. None: an older release does not say."""
    header: RunHeader
    needs: RunNeeds | None = None
    """What the journal needs from now on. None: the same as before."""
    running_seconds: Seconds = 0.0
    """How long the run has been running, over all attempts and without its waiting time."""
    parking: Parking | None = None
    """Ends the attempt: the task waits until something wakes it."""
    steps: EndedSteps | None = None
    """The steps that have ended since the last write. None: none, or an older release."""
    volatile: str | None = None
    """Why the run cannot be stored, in words. Deletes its journal, and offers consumed inbox entries to the
    next attempt, which starts from the beginning."""


class JournalReply(BaseModel):
    """The answer to a `JournalWrite`."""

    stored: bool
    reason: str = ""
    """Why it was rejected."""
    retriable: bool = False
    """Whether a rejected write may be stored later. Otherwise the attempt does not belong to its sender."""


class RunRenewal(BaseModel):
    """Where a task that retries another one takes over its run: what was used up until there is forgotten."""

    entries: Count
    """How many entries the journal of the ended task has had."""
    paused_seconds: Seconds = 0.0
    """How long the task had ended when it was retried. The time limits of waits do not count this time."""


class RunOrigin(BaseModel):
    """Where a run comes from that was copied from an ended task."""

    task_id: str
    """The task that has begun it. All that is stored of the run is sealed for this task."""
    renewals: list[RunRenewal]
    """The retries, one for each task that has taken it over, in order."""


class RunRecord(BaseModel):
    """What a run resumes from that an earlier attempt began."""

    header: RunHeader
    needs: RunNeeds | None = None
    """What it needs of the version that resumes it. None: an older release has written it, and only the same
    `fingerprint` resumes it."""
    snapshot: str | None = None
    entries: list[str]
    """The entries after the snapshot, in order."""
    next_seq: Count
    """The `seq` of the next write."""
    state: str | None = None
    running_seconds: Seconds = 0.0
    origin: RunOrigin | None = None
    """Where it comes from. None: it has begun with this task."""
    snapshots: Count = 0
    """How many snapshots of it were written. What a fork has left out does not count."""

    @property
    def goes_on(self) -> bool:
        """Whether there is a journal to resume from."""
        return self.snapshot is not None or bool(self.entries)


class ClaimRequest(AttemptReference):
    """An instance asks to own an attempt."""

    instance_id: str
    durability: Durability | None = None
    """What becomes of the run when the instance dies, unless it becomes volatile, or is already."""


class AttemptPart(StrEnum):
    """What an attempt starts from. Each part is a field of `ClaimReply`."""

    INPUT = "input"
    SESSION_STATE = "session_state"
    INBOX = "inbox"
    RUN = "run"


class ClaimReply(BaseModel):
    """The answer to a `ClaimRequest`."""

    granted: bool
    reason: str = ""
    """Why the claim was rejected."""
    retriable: bool = False
    """Whether a rejected claim may be granted later. Otherwise the attempt cannot be claimed any more."""
    token: str = ""
    input: str = ""
    """The run arguments: a JSON object as text."""
    session_state: dict[str, Any] = Field(default_factory=dict)
    is_parallel: bool = False
    """Whether other tasks of the session may run at the same time."""
    state_origin: str | None = None
    """The session for which the states of workflows are signed. None: that of the task."""
    inbox: list[InboxEntry] = Field(default_factory=list)
    """The events sent to the task that its run has not consumed, in order."""
    inbox_seq: int = 0
    """The `seq` of the last event sent to the task, consumed or not."""
    run: RunRecord | None = None
    """What earlier attempts have stored. None: the run starts from its beginning."""
    volatile: str | None = None
    """Why an earlier attempt found that the run cannot be stored: it is not to be tried again."""
    questions: list[str] = Field(default_factory=list)
    """The ids of the questions that earlier attempts have asked and that are open."""
    subject: str | None = None
    """To whom the task belongs within its tenant. None: to nobody in particular."""
    omitted: list[str] = Field(default_factory=list)
    """The parts that are too large for this reply. Fetch them with `PartRequest`."""


class PartRequest(OwnedAttempt):
    """Fetches a slice of a part that the reply to a claim omitted."""

    part: AttemptPart
    offset: Count = 0
    """How many characters of the part's text were received."""
    digest: str | None = None
    """`PartReply.digest` of these characters."""


class PartReply(BaseModel):
    """The answer to a `PartRequest`."""

    text: str
    """The next characters from `offset` on, or from 0 if the text has changed since `PartRequest.digest`."""
    size: int
    """How many characters the whole text has."""
    digest: str
    """Identifies the whole text."""


class ReleaseRequest(OwnedAttempt):
    """An instance releases an attempt that it will not finish, for example at the end of a drain."""


class HeldAttempt(AttemptReference):
    """An attempt that an instance holds, as its heartbeats list it."""

    inbox_seq: Count = 0
    """The last inbox entry that the instance has seen."""
    running_seconds: Seconds | None = None
    """How much of its time limit the run has used, over all attempts. None: it runs no workflow, or has
    ended."""
    timeout: Seconds | None = None
    """The time limit of the run in seconds. None: without limit."""
    waits: Flag = False
    """Whether the run only waits for something from outside, and none of its timers is due within a lease."""
    steps: list[PresentStep] = Field(default_factory=list)
    """The steps that run, some of them if there are many."""


class Heartbeat(BaseModel):
    """A sign of life of an instance, with the attempts that it holds and its load."""

    instance_id: str
    held: list[HeldAttempt] = Field(default_factory=list)
    claiming: list[tuple[str, Count]] = Field(default_factory=list)
    """Task id and number of the attempts whose claims are under way."""
    heard_at: Timestamp | None = None
    """`HeartbeatReply.at` of the last reply that the instance has received. None: no reply yet."""
    slots: Count | None = None
    """The maximum number of concurrent tasks; 0 if the instance is about to stop, or takes none until it has
    run a suspect. None: not reported, by an older release."""
    running: Count = 0
    """How many tasks it is running, including those that wait in memory."""
    blocked_seconds: Seconds = 0.0
    """For how long its event loop has been blocked; 0 if it is not. While it is, the control plane ends held
    attempts that are cancelled or over their time limit, because the instance cannot."""
    blocked: list[BlockedStep] = Field(default_factory=list, max_length=MAX_BLOCKED_STEPS)
    """What blocks it."""
    alone: Flag = False
    """Whether it runs suspects alone in its process, or waits for its other tasks to end before it can."""


class HeartbeatReply(BaseModel):
    """What the control plane knows that the instance may have missed."""

    at: AwareDatetime
    """When the heartbeat was processed, by the control plane's clock."""
    protocol: int = PROTOCOL_VERSION
    """The version that the control plane speaks."""
    known: bool = True
    """False: the instance is not registered and must register again."""
    stale: list[HeldAttempt] = Field(default_factory=list)
    """Held attempts that the instance does not own: ended, or taken over. The same for claims whose answers
    have not arrived: an answer that grants such a claim is out of date."""
    cancelled: list[TaskCancellation] = Field(default_factory=list)
    """Held attempts whose cancellation was requested."""
    inbox: list[InboxEntry] = Field(default_factory=list)
    """Events for held attempts after their `inbox_seq` that their runs have not consumed."""
    suspects: int = 0
    """How many tasks of its service wait for a process in which they run alone, if the instance is asked to
    provide one. 0: it is not asked."""


_Ids = Annotated[list[str], Field(max_length=MAX_INSTANCES_OF_PROCESS)]


class ProcessDeath(BaseModel):
    """A process that ran instances has ended. Its supervisor reports it, and may do so again."""

    instances: Annotated[_Ids, Field(min_length=1)]
    """The ids of all its instances."""
    reason: str = Field(min_length=1, max_length=MAX_REASON_CHARACTERS, pattern=r"^[^\r\n]*$")
    """How it ended, in words that follow `the process`, such as `was killed by SIGKILL`."""
    culprits: _Ids = Field(default_factory=list)
    """The tasks whose steps blocked the process: only they are charged with its death. Empty: not known, so a
    task is charged only if it was alone."""


class ReleaseReply(BaseModel):
    """The answer to a `ReleaseRequest`."""

    outcome: Literal["released", "stale"]
