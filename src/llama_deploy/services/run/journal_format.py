"""How the runs of a workflow are written down, and how one is restored from what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, model_validator
from workflows import Context, Workflow
from workflows.events import Event

from llama_deploy import workflow_library as library
from llama_deploy.errors import LlamaDeployError, RunMismatchError, SerializationError
from llama_deploy.services.run.waits import Wait, Waits
from llama_deploy.services.values.session_state import StateCodec
from llama_deploy.services.values.writing import Writing
from llama_deploy.types.instance_protocol import RunHeader, RunRecord
from llama_deploy.workflow_library import BrokerState

SNAPSHOT_FORMAT: Final = 1
"""The format that this release writes, and the only one that it reads."""


class RunSnapshot(BaseModel):
    """A run as it is written down for its time outside memory."""

    format: int = SNAPSHOT_FORMAT
    """The major version of this model."""
    run: library.Snapshot
    waits: list[Wait]

    @model_validator(mode="before")
    @classmethod
    def _check_format(cls, fields: Any) -> Any:
        """Refuse another major version before its fields are read.

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
class JournalFormat:
    """How the runs of one workflow are written down and read again.

    Args:
        workflow: The workflow.
        writing: How its values are written.
        states: How its state is.
        header: Tells what has written it.
    """

    workflow: Workflow
    writing: Writing
    states: StateCodec
    header: RunHeader

    @classmethod
    def of(cls, workflow: Workflow, *, writing: Writing, states: StateCodec) -> JournalFormat:
        """Return the format of a workflow's runs."""
        header = RunHeader(
            fingerprint=library.fingerprint(workflow), library_version=library.library_version()
        )
        return cls(workflow, writing, states, header)

    def restore(self, record: RunRecord, *, task_id: str) -> tuple[Context, Past]:
        """Return a context from which a run goes on, and what is known of its past.

        Raises:
            RunMismatchError: Another workflow, or another version of the library, has begun the run.
            SignatureError: It was not written by a service with a key of this one.
            SerializationError: It cannot be read.
        """
        self._check(record, task_id=task_id)
        snapshot: RunSnapshot | None = None
        try:
            if record.snapshot is not None:
                text = self.writing.open(record.snapshot, context=f"snapshot:{task_id}")
                snapshot = RunSnapshot.model_validate_json(text)
            first = record.next_seq - len(record.entries)
            ticks = [
                tick
                for seq, entry in enumerate(record.entries, start=first)
                for tick in self.writing.open(entry, context=f"journal:{task_id}:{seq}").split("\n")
            ]
            state = record.state
            if state is not None:
                state = self.writing.open(state, context=f"state:{task_id}") or None
            restored = library.restore(
                self.workflow,
                snapshot=None if snapshot is None else snapshot.run,
                ticks=ticks,
                state=self.states.seed(state),
                serializer=self.writing.serializer,
            )
        except (ValueError, TypeError, KeyError) as exc:
            if isinstance(exc, LlamaDeployError):
                raise
            raise SerializationError(f"the journal of task {task_id} cannot be read: {exc}") from exc
        if not restored.broker.is_running:
            raise SerializationError(f"the journal of task {task_id} does not hold a run that can go on")
        waits = Waits.restore([] if snapshot is None else snapshot.waits)
        for tick in restored.ticks:
            waits.note(tick)
        return restored.context, Past(record, waits, state, restored.broker, restored.received)

    def _check(self, record: RunRecord, *, task_id: str) -> None:
        begun, here = record.header, self.header
        if begun.fingerprint != here.fingerprint:
            raise RunMismatchError(
                f"task {task_id} was begun by another version of {self.workflow.workflow_name}: its steps, or"
                " the events that they take and return, have changed since; let instances of the old version"
                " end their tasks before they are replaced, or start the task again",
                task_id=task_id,
            )
        if record.entries and begun.library_version != here.library_version:
            raise RunMismatchError(
                f"task {task_id} was begun with version {begun.library_version} of llama-index-workflows,"
                f" and this instance has {here.library_version}; stop the instances of the old version with"
                " SIGTERM, which writes their runs down in a form that every version reads",
                task_id=task_id,
            )


@dataclass(frozen=True, slots=True)
class Past:
    """What earlier attempts have left of a run."""

    record: RunRecord | None = None
    """Its journal. None: there is none."""
    waits: Waits = field(default_factory=Waits)
    """The time limits of its waiting steps."""
    state: str | None = None
    """The run's own state as text. None: it is empty."""
    broker: BrokerState | None = None
    """What the library knows of the run. None: it is at its beginning."""
    received: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    """What the run has received from steps that begin again, see `Sends`."""
