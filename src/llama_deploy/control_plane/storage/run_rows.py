"""The runs of one transaction and their journals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.records import RUN_FORMAT, JournalRecord, RunHeadRecord, TaskRecord
from llama_deploy.types.instance_protocol import JournalWrite, RunHeader, RunRecord
from llama_deploy.types.workflow_shape import RunNeeds

_KEPT: Final = ("snapshot", "state", "needs")
"""The fields of a head that a write without them does not change."""


class RunRows:
    """Runs: changes are gathered, and written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope) -> None:
        self._tx = tx
        self._scope = scope
        self._loaded: dict[str, tuple[RunHeadRecord, list[JournalRecord]]] = {}
        self._heads: dict[str, RunHeadRecord] = {}
        self._trimmed: dict[str, int] = {}
        self._entries: list[JournalRecord] = []
        self._forgotten: set[str] = set()

    def load(self, task_ids: Collection[str]) -> None:
        """Read what is stored of the tasks' runs."""
        if not task_ids:
            return
        journals: dict[str, list[JournalRecord]] = {task_id: [] for task_id in task_ids}
        for entry in self._tx.runs.load_journal(task_ids):
            journals[entry.task_id].append(entry)
        for task_id, head in self._tx.runs.load(task_ids).items():
            self._loaded[task_id] = (head, journals[task_id])

    def record(self, task: TaskRecord) -> RunRecord | None:
        """Return what the task's run resumes from, None if nothing of it is stored."""
        self._scope.require(RowKind.RUN, task.task_id)
        if not task.has_run:
            return None
        if task.task_id not in self._loaded:
            self.flush()
            self.load([task.task_id])
        return run_record(task, *self._loaded[task.task_id])

    def write(self, write: JournalWrite) -> None:
        """Store a write."""
        task_id = write.task_id
        self._loaded.pop(task_id, None)
        head = RunHeadRecord(
            task_id=task_id,
            fingerprint=write.header.fingerprint,
            library_version=write.header.library_version,
            snapshot=write.snapshot,
            state=write.state,
            needs=None if write.needs is None else write.needs.model_dump_json(exclude_defaults=True),
        )
        if (before := self._heads.get(task_id)) is not None:
            kept = {name: getattr(before, name) for name in _KEPT if getattr(head, name) is None}
            head = head._replace(**kept)
        self._heads[task_id] = head
        if write.snapshot is not None:
            self._trimmed[task_id] = write.seq
        if write.entry is not None:
            self._entries.append(JournalRecord(task_id, write.seq, write.entry))

    def forget(self, task_ids: Collection[str], *, stored: bool = True) -> None:
        """Delete the runs of tasks; with `stored` False only what is gathered here."""
        for task_id in task_ids:
            self._loaded.pop(task_id, None)
            self._heads.pop(task_id, None)
            self._trimmed.pop(task_id, None)
        self._entries = [entry for entry in self._entries if entry.task_id not in task_ids]
        if stored:
            self._forgotten.update(task_ids)
        else:
            self._forgotten.difference_update(task_ids)

    def flush_head(self, task_id: str) -> None:
        """Write what is gathered if it has the head of this run, so that it can be read."""
        if task_id in self._heads:
            self.flush()

    def flush(self) -> None:
        """Write all changes."""
        if self._heads:
            self._tx.runs.put(list(self._heads.values()))
        if self._entries:
            self._tx.runs.insert_journal(self._entries)
        if self._trimmed:
            self._tx.runs.trim_journal(self._trimmed)
        if self._forgotten:
            self._tx.runs.delete(self._forgotten)
        self._heads, self._entries, self._trimmed, self._forgotten = {}, [], {}, set()


def run_record(task: TaskRecord, head: RunHeadRecord, entries: Sequence[JournalRecord]) -> RunRecord:
    """Return what a task's run resumes from.

    Raises:
        UnavailableError: Another release has written the run, in a format that this one cannot read.
    """
    if head.format != RUN_FORMAT:
        raise UnavailableError(
            f"the run of task {task.task_id} is stored in format {head.format}, and this release reads"
            f" format {RUN_FORMAT} only: start a control plane of the release that has written it"
        )
    return RunRecord(
        header=RunHeader(fingerprint=head.fingerprint, library_version=head.library_version),
        needs=None if head.needs is None else RunNeeds.model_validate_json(head.needs),
        snapshot=head.snapshot,
        entries=[entry.entry for entry in entries],
        next_seq=task.journal_length,
        state=head.state,
        running_seconds=task.running_seconds,
    )
