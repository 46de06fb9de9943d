"""One run as the texts that its journal stores: entries, snapshots, and the state when it has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llama_deploy import workflow_library as library
from llama_deploy.services.run.inbox.asked_counts import AskedCounts
from llama_deploy.services.run.journal.journal_format import (
    JournalFormat,
    Part,
    RunHistory,
    RunSnapshot,
    sealed_task,
)
from llama_deploy.services.run.journal.needs_tracker import Classes, Folded, NeedsTracker
from llama_deploy.services.run.journal.stored_state import StoredState, WrittenState
from llama_deploy.types.state_changes import dump_change
from llama_deploy.workflow_library import InternalRunAdapter, WorkflowTick


@dataclass(slots=True, eq=False)
class RunTexts:
    """Reads a run through the library's access to it: from `attach` to `detach`."""

    form: JournalFormat
    task_id: str
    history: RunHistory
    """What earlier attempts have left. The run keeps its waits and sent events up to date."""
    needs: NeedsTracker
    """Learns what is written."""
    state: StoredState
    """The run's state as it was written last. Set it to what it was if a write was refused."""
    _adapter: InternalRunAdapter | None = field(default=None, init=False)

    def attach(self, adapter: InternalRunAdapter) -> None:
        """Take the library's access to the run, which begins now."""
        self._adapter = adapter

    def detach(self) -> None:
        """Let go of the run, which what a step has left running must not keep in memory."""
        self._adapter = None

    def forget(self) -> None:
        """Let the library forget what only snapshots need; none can be made any more."""
        self.state = StoredState()
        if self._adapter is not None:
            library.forget_ticks(self._adapter)

    def seal(self, kind: Part, text: str, *, seq: int | None = None) -> str:
        """Return a text as it is stored; see `JournalFormat.seal`."""
        task_id = sealed_task(self.history.record, self.task_id)
        return self.form.seal(kind, text, task_id=task_id, seq=seq)

    def entries(self, ticks: Sequence[WorkflowTick], *, first: int, has_asked: bool = False) -> list[str]:
        """Return ticks as sealed entries, one for each write.

        Args:
            ticks: The ticks.
            first: The number of the first entry.
            has_asked: See `RunInbox.has_asked`.

        Raises:
            SerializationError: A value cannot be written; the path says where.
        """
        classes: Classes = {}
        with self.form.writing.noting(classes):
            texts = self.form.entries(ticks)
        if texts:
            self.needs.add_entries(ticks, classes, has_asked=has_asked)
        return [self.seal("journal", text, seq=seq) for seq, text in enumerate(texts, start=first)]

    async def changed_state(self) -> WrittenState | None:
        """Return the run's state, which counts as written from now on. None: it has not changed.

        Raises:
            SerializationError: A value cannot be written; the path says where.
        """
        if self._adapter is None or (store := self._adapter.get_state_store(())) is None:
            return None
        classes: Classes = {}
        text = await self.form.states.encode(store, classes=classes) or ""
        if text == self.state.text:
            return None
        before, sealed = self.state, self.seal("state", text)
        self.state = StoredState.of(text, sealed)
        self.needs.set_state(classes)
        return WrittenState(sealed, self.state.mark, dump_change(before.sealed, sealed))

    def snapshot(
        self, *, idle: bool, has_asked: bool, counts: AskedCounts | None = None
    ) -> WrittenSnapshot | None:
        """Return a snapshot.

        Args:
            idle: Require that the run waits for something from outside.
            has_asked: See `RunInbox.has_asked`.
            counts: See `RunInbox.asked_counts`. None: nothing was asked.

        Returns:
            None if the library cannot write the run, or if it is not idle but must be.

        Raises:
            SerializationError: A value cannot be written; the path says where.
        """
        if self._adapter is None:
            return None
        serializer, received = self.form.writing.serializer, self.history.sent.received
        classes: Classes = {}
        with self.form.writing.noting(classes):
            made = library.snapshot(
                self._adapter, serializer, workflow=self.needs.workflow, idle=idle, received=received
            )
        if made is None:
            return None
        record = self.history.record
        whole = RunSnapshot(
            run=made.snapshot,
            waits=self.history.waits.all(),
            has_asked=has_asked,
            asked=[] if counts is None else counts.all(),
            renewals=0 if record is None or record.origin is None else len(record.origin.renewals),
        )
        folded = self.needs.folded(
            made.steps,
            classes,
            awaited=made.awaited,
            takes_answers=has_asked or (idle and not made.awaited),
        )
        return WrittenSnapshot(whole.model_dump_json(), made.forget, folded)


@dataclass(frozen=True, slots=True)
class WrittenSnapshot:
    """A run as a snapshot."""

    text: str
    """A `RunSnapshot`, not sealed."""
    forget: Callable[[], None]
    """See `MadeSnapshot.forget`."""
    folded: Folded
    """What the run needs when it is stored."""
