"""How the runs of a workflow are written to their journals, and restored from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, Field, model_validator
from workflows import Context, Workflow
from workflows.events import InputRequiredEvent

from llama_deploy import workflow_library as library
from llama_deploy.concurrency.batching import split
from llama_deploy.errors import LlamaDeployError, RunMismatchError, SerializationError
from llama_deploy.services.run.attempt_reports import MAX_MESSAGE_CHARACTERS
from llama_deploy.services.run.inbox.asked_counts import AskedCount, AskedCounts
from llama_deploy.services.run.inbox.sent_events import SentEvents
from llama_deploy.services.run.inbox.waits import Wait, Waits
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.instance_protocol import RunHeader, RunRecord, RunRenewal
from llama_deploy.types.keys import public_id
from llama_deploy.types.workflow_shape import WorkflowShape
from llama_deploy.workflow_library import BrokerState, WorkflowTick

SNAPSHOT_FORMAT: Final = 1
"""The format of snapshots that this release writes, and the only one that it reads."""
Part: TypeAlias = Literal["journal", "snapshot", "state"]
"""What is stored of a run: the entries of its journal, its snapshot, its state."""


class RunSnapshot(BaseModel):
    """A run without its state."""

    format: int = SNAPSHOT_FORMAT
    """The major version of this model."""
    run: library.Snapshot
    waits: list[Wait]
    has_asked: bool = False
    """See `RunInbox.has_asked`."""
    asked: list[AskedCount] = Field(default_factory=list)
    """See `RunInbox.asked_counts`."""
    renewals: int = 0
    """How many of `RunOrigin.renewals` it is later than."""

    @model_validator(mode="before")
    @classmethod
    def _check_format(cls, fields: Any) -> Any:
        """Reject another major version before its fields are read.

        Raises:
            RunMismatchError: The snapshot has another format.
        """
        found = fields.get("format", SNAPSHOT_FORMAT) if isinstance(fields, dict) else SNAPSHOT_FORMAT
        if found != SNAPSHOT_FORMAT:
            raise RunMismatchError(
                f"the snapshot of the run has format {found!r} but this release reads format"
                f" {SNAPSHOT_FORMAT}; resume the run with an instance of the release that wrote it"
            )
        return fields


@dataclass(frozen=True, slots=True)
class RunHistory:
    """What earlier attempts have left of a run."""

    record: RunRecord | None = None
    """Its journal. None: there is none."""
    waits: Waits = field(default_factory=Waits)
    """The time limits of its waiting steps."""
    state: str | None = None
    """The run's own state as text. None: it is empty."""
    broker: BrokerState | None = None
    """The library's state of the run. None: it is at its beginning."""
    sent: SentEvents = field(default_factory=lambda: SentEvents({}))
    """What the run has received from steps that begin again."""
    has_asked: bool = False
    """Whether the run has asked a question, as far as it is stored."""
    asked: AskedCounts = field(default_factory=AskedCounts)
    """How often it has asked under the same name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The keys of `ctx.store` that an earlier task of the session could not store, and why."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """See `WorkflowState.bases`."""


@dataclass(frozen=True, slots=True)
class JournalFormat:
    """Writes the runs of one workflow as text, and reads them again.

    Args:
        workflow_name: The workflow, for errors.
        writing: Writes and signs its values.
        states: Writes its state.
        shape: Describes the workflow.
        bases: See `WorkflowState.bases`. They are stored with the state of the run.
    """

    workflow_name: str
    writing: Writing
    states: StateCodec
    shape: WorkflowShape
    bases: Mapping[str, str] = field(default_factory=dict)

    @property
    def header(self) -> RunHeader:
        """Identifies the workflow and the library that write."""
        return RunHeader(fingerprint=self.shape.fingerprint, library_version=self.shape.library_version)

    def of_run(self, bases: Mapping[str, str]) -> JournalFormat:
        """Return the format for a run that has begun with these values in its session."""
        return replace(self, bases=bases) if bases else self

    def entries(self, ticks: Sequence[WorkflowTick]) -> list[str]:
        """Return ticks as the texts of journal entries, each small enough for one write.

        A run can be resumed after each of them.

        Raises:
            SerializationError: A value cannot be written; the path says where.
        """
        texts = map(self._tick_text, ticks)
        # JSON text has no line breaks.
        return ["\n".join(part) for part in split(texts, size=len, max_size=MAX_MESSAGE_CHARACTERS)]

    def _tick_text(self, tick: WorkflowTick) -> str:
        try:
            return self.writing.write(tick, path="the run")
        except SerializationError:
            # Name the place in terms of the workflow; its author does not know ticks.
            for place, event in library.events_of(tick):
                self.writing.write(event, path=place)
            raise

    def seal(self, kind: Part, text: str, *, task_id: str, seq: int | None = None) -> str:
        """Return a text as it is stored: an entry with its number, a `RunSnapshot`, or a state."""
        if kind == "state" and self.bases:
            text = f"{text}\n{json.dumps(dict(self.bases))}"  # JSON text has no line breaks
        return self.writing.seal(text, context=_context(kind, task_id, seq))

    def restore(self, record: RunRecord, *, workflow: Workflow, task_id: str) -> tuple[Context, RunHistory]:
        """Return the context and the history with which a run is resumed.

        Args:
            record: What is stored of the run.
            workflow: The object that continues it.
            task_id: The task.

        Raises:
            RunMismatchError: A workflow with other steps has begun the run, and it is not known what the run
                needs; or it has entries of another version of the library.
            SignatureError: The journal was not written by a service with a key of this one.
            SerializationError: The journal cannot be read.
        """
        self._check(record, task_id=task_id)
        sealed_for = sealed_task(record, task_id)
        try:
            stored = self._open(record, task_id=task_id)
            snapshot = stored.snapshot
            state, bases = record.state, {}
            if state is not None:
                text = self.writing.open(state, context=_context("state", sealed_for))
                state, _, begun_with = text.partition("\n")
                state, bases = state or None, json.loads(begun_with or "{}")
            restored = library.restore(
                workflow,
                snapshot=None if snapshot is None else snapshot.run,
                ticks=stored.ticks,
                steps=self._steps_of(record),
                renewals=stored.renewed_after,
                state=self.states.seed(state),
                serializer=self.writing.serializer,
            )
        except (ValueError, TypeError, KeyError) as exc:
            if isinstance(exc, LlamaDeployError):
                raise
            raise SerializationError(
                f"the journal of task {public_id(task_id)} cannot be read: {exc}"
            ) from exc
        if not restored.broker.is_running:
            raise SerializationError(
                f"the journal of task {public_id(task_id)} does not hold a run that can be resumed"
            )
        waits = Waits.restore(
            wait.model_copy(update={"waiter_id": restored.waiter_ids.local(wait.waiter_id)})
            for wait in ([] if snapshot is None else snapshot.waits)
        )
        begin = 0
        for end, renewal in zip(stored.renewed_after, stored.renewals, strict=True):
            waits.on_ticks(restored.ticks[begin:end])
            waits.postpone(renewal.paused_seconds)
            begin = end
        waits.on_ticks(restored.ticks[begin:])
        asked = AskedCounts.restore([] if snapshot is None else snapshot.asked)
        for tick in restored.ticks:
            asked.on_tick(tick)
        sent = SentEvents(restored.received)
        events = (event for tick in restored.ticks for _, event in library.events_of(tick))
        has_asked = any(isinstance(event, InputRequiredEvent) for event in events)
        has_asked = has_asked or (snapshot is not None and snapshot.has_asked)
        history = RunHistory(record, waits, state, restored.broker, sent, has_asked, asked, bases=bases)
        return restored.context, history

    def replayed(
        self, record: RunRecord, *, workflow: Workflow, task_id: str
    ) -> Iterator[library.ReplayedTick]:
        """Apply what is stored of a run to a workflow, without resuming it; see `workflow_library.replayed`.

        Raises:
            ValueError: The snapshot does not fit the workflow, or cannot be read.
        """
        stored = self._open(record, task_id=task_id)
        yield from library.replayed(
            workflow,
            snapshot=None if stored.snapshot is None else stored.snapshot.run,
            ticks=stored.ticks,
            steps=self._steps_of(record),
            renewals=stored.renewed_after,
            serializer=self.writing.serializer,
        )

    def _open(self, record: RunRecord, *, task_id: str) -> _StoredRun:
        """Return the texts of a run, whose signatures are valid."""
        sealed_for = sealed_task(record, task_id)
        snapshot: RunSnapshot | None = None
        if record.snapshot is not None:
            text = self.writing.open(record.snapshot, context=_context("snapshot", sealed_for))
            snapshot = RunSnapshot.model_validate_json(text)
        first = record.next_seq - len(record.entries)
        entries = [
            self.writing.open(entry, context=_context("journal", sealed_for, seq)).split("\n")
            for seq, entry in enumerate(record.entries, start=first)
        ]
        renewals = _renewals(record, snapshot)
        return _StoredRun(
            snapshot=snapshot,
            ticks=[tick for entry in entries for tick in entry],
            renewals=renewals,
            renewed_after=[sum(map(len, entries[: max(0, each.entries - first)])) for each in renewals],
        )

    def _steps_of(self, record: RunRecord) -> Collection[str] | None:
        """Return the steps that a run has needed so far. None: its workflow has had the same steps."""
        if record.needs is None or record.header.fingerprint == self.shape.fingerprint:
            return None
        return record.needs.steps.keys()

    def _check(self, record: RunRecord, *, task_id: str) -> None:
        """Check what the control plane has not: it compares the needs of a run when an instance claims it."""
        begun, here = record.header, self.shape
        if record.needs is None and begun.fingerprint != here.fingerprint:
            raise RunMismatchError(
                f"task {public_id(task_id)} was begun by another version of {self.workflow_name}: its steps,"
                " or the events that they take and return, have changed since. Let instances of the old"
                " version finish their tasks before you replace them, or start the task again",
                task_id=task_id,
            )
        if record.entries and begun.library_version != here.library_version:
            raise RunMismatchError(
                f"task {public_id(task_id)} was begun with version {begun.library_version} of"
                f" llama-index-workflows, and this instance has {here.library_version}. Stop the instances"
                " of the old version with SIGTERM: they then store their runs in a form that every version"
                " reads",
                task_id=task_id,
            )


@dataclass(frozen=True, slots=True)
class _StoredRun:
    """What is stored of a run, opened."""

    snapshot: RunSnapshot | None
    ticks: Sequence[str]
    """Those after the snapshot."""
    renewals: Sequence[RunRenewal]
    """The retries after the snapshot."""
    renewed_after: Sequence[int]
    """After how many of the ticks each of them comes."""


def sealed_task(record: RunRecord | None, task_id: str) -> str:
    """Return the task for which everything is sealed that is stored of a task's run."""
    return task_id if record is None or record.origin is None else record.origin.task_id


def _renewals(record: RunRecord, snapshot: RunSnapshot | None) -> Sequence[RunRenewal]:
    """Return the retries of a run that its snapshot does not contain yet."""
    known = 0 if snapshot is None else snapshot.renewals
    return [] if record.origin is None else record.origin.renewals[known:]


def _context(kind: Part, task_id: str, seq: int | None = None) -> str:
    return f"{kind}:{task_id}" if seq is None else f"{kind}:{task_id}:{seq}"
