"""The runs of one transaction and their journals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from llama_deploy.control_plane.storage.read_budget import ReadBudget
from llama_deploy.control_plane.storage.reads import RowKind, Scope
from llama_deploy.errors import UnavailableError
from llama_deploy.state_stores.base import StoreTransaction
from llama_deploy.state_stores.large_values import Deferred
from llama_deploy.state_stores.records import (
    RUN_FORMAT,
    JournalRecord,
    RunCopy,
    RunHeadRecord,
    RunPastRecord,
    RunSizeRecord,
    TaskRecord,
)
from llama_deploy.types.instance_protocol import JournalWrite, RunHeader, RunOrigin, RunRecord
from llama_deploy.types.json_values import utf8_bytes
from llama_deploy.types.keys import public_id
from llama_deploy.types.run_past import MAX_PAST_BYTES, ReplacedJournal
from llama_deploy.types.workflow_shape import RunNeeds

_UNCHANGED_BY_NONE: Final = ("snapshot", "state", "needs", "snapshots")
"""The fields of a head that a write without them does not change."""
_TRIM_EVERY: Final = 16
"""After about how many small writes that replace something the past of a run is measured."""
_MAX_REPLACED_BYTES: Final = 2 * 1024 * 1024
"""How large a journal may be that is read to be kept when a snapshot replaces it."""
_LARGE_BYTES: Final = 16 * 1024
"""After about how many bytes it is measured, and after each write that has as many."""


class RunRows:
    """Runs: changes are gathered, and written by `flush`."""

    def __init__(self, tx: StoreTransaction, scope: Scope, budget: ReadBudget) -> None:
        self._tx = tx
        self._scope = scope
        self._budget = budget
        self._loaded: dict[str, tuple[RunHeadRecord, list[JournalRecord]]] = {}
        self._deferred: dict[str, RunSizeRecord] = {}
        """The runs that were too large together to be read."""
        self._heads: dict[str, RunHeadRecord] = {}
        self._trimmed: dict[str, int] = {}
        self._entries: list[JournalRecord] = []
        self._forgotten: set[str] = set()
        self._past: list[RunPastRecord] = []

    def load(self, task_ids: Collection[str]) -> None:
        """Read what is stored of the tasks' runs, the smallest first, as far as the transaction may."""
        if not task_ids:
            return
        sizes = self._tx.runs.sizes(task_ids)
        chosen: set[str] = set()
        for task_id, stored in sorted(sizes.items(), key=lambda each: each[1].size):
            if self._budget.take(stored.size):
                chosen.add(task_id)
            else:
                self._deferred[task_id] = stored
        if chosen:
            self._read(chosen)

    def _read(self, task_ids: Collection[str]) -> None:
        journals: dict[str, list[JournalRecord]] = {task_id: [] for task_id in task_ids}
        for entry in self._tx.runs.load_journal(task_ids):
            journals[entry.task_id].append(entry)
        for task_id, head in self._tx.runs.load(task_ids).items():
            self._loaded[task_id] = (head, journals[task_id])

    def record(self, task: TaskRecord) -> RunRecord | Deferred | None:
        """Return what the task's run resumes from, None if nothing of it is stored.

        Raises:
            UnavailableError: See `run_record`.
        """
        self._scope.require(RowKind.RUN, task.task_id)
        if not task.has_run:
            return None
        if task.task_id not in self._loaded and task.task_id not in self._deferred:
            self.flush()
            self.load([task.task_id])
        if (deferred := self._deferred.get(task.task_id)) is not None:
            check_format(task, deferred.format)
            return Deferred(deferred.size)
        return run_record(task, *self._loaded[task.task_id])

    def write(self, write: JournalWrite) -> None:
        """Store a write."""
        task_id = write.task_id
        self._loaded.pop(task_id, None)
        self._deferred.pop(task_id, None)
        if write.state_change is not None or write.snapshot is not None:
            self._add_past(write)
        head = RunHeadRecord(
            task_id=task_id,
            fingerprint=write.header.fingerprint,
            library_version=write.header.library_version,
            snapshot=write.snapshot,
            state=write.state,
            needs=None if write.needs is None else write.needs.model_dump_json(exclude_defaults=True),
            snapshots=None if write.snapshot is None else self._snapshots_before(write) + 1,
        )
        if (before := self._heads.get(task_id)) is not None:
            missing = [name for name in _UNCHANGED_BY_NONE if getattr(head, name) is None]
            head = head._replace(**{name: getattr(before, name) for name in missing})
        self._heads[task_id] = head
        if write.snapshot is not None:
            self._trimmed[task_id] = write.seq
        if write.entry is not None:
            self._entries.append(JournalRecord(task_id, write.seq, write.entry))

    def _snapshots_before(self, write: JournalWrite) -> int:
        """Return how many snapshots precede a write."""
        if write.snapshots is not None:
            return write.snapshots
        # An instance of an older release does not count them. If it sends one again, the count only skips a
        # number: points in the journal have to be different, and not without gaps.
        self.flush_head(write.task_id)
        stored = self._tx.runs.sizes([write.task_id]).get(write.task_id)
        return 0 if stored is None else stored.snapshots or 0

    def _add_past(self, write: JournalWrite) -> None:
        """Add what a write replaces to the past of its run, so that a fork can go back before it."""
        if write.snapshots is None:
            return  # an older release does not say where its runs are
        replaced = None if write.snapshot is None else self._replaced_by(write)
        change, change_size = write.state_change, utf8_bytes(write.state_change or "")
        if change_size > MAX_PAST_BYTES:
            change, change_size = None, 0
        if size := change_size + len(replaced or b""):
            place = (write.task_id, write.seq, write.snapshots)
            self._past.append(RunPastRecord(*place, size, change, replaced))

    def _replaced_by(self, write: JournalWrite) -> bytes | None:
        """Return the journal that a snapshot replaces, packed. None: there is none, or it is too large."""
        if (write.seq, write.snapshots) == (0, 0):
            return None
        self.flush_head(write.task_id)
        ids = [write.task_id]
        stored = self._tx.runs.sizes(ids).get(write.task_id)
        if stored is None or stored.format != RUN_FORMAT or stored.journal > _MAX_REPLACED_BYTES:
            return None
        if (stored.snapshots or 0) != write.snapshots:
            return None  # the same write was stored before
        start = self._tx.runs.load_journal_starts(ids)[write.task_id]
        entries = [each.entry for each in self._tx.runs.load_journal(ids)]
        replaced = ReplacedJournal(first=write.seq - len(entries), entries=entries, **start._asdict())
        packed = replaced.pack()
        return packed if len(packed) <= MAX_PAST_BYTES else None

    def origin(self, task: TaskRecord) -> RunOrigin | None:
        """Return where the stored run of a task comes from, None if it has begun with the task."""
        self._scope.require(RowKind.TASK, task.task_id)
        self.flush_head(task.task_id)
        head = self._tx.runs.load([task.task_id])[task.task_id]
        return None if head.origin is None else RunOrigin.model_validate_json(head.origin)

    def copy(self, source_id: str, target_id: str, origin: RunOrigin) -> None:
        """Copy the run of an ended task for a new one."""
        self.flush()
        self._tx.runs.copy([RunCopy(source_id, target_id, origin.model_dump_json())])

    def add(self, head: RunHeadRecord, entries: Sequence[JournalRecord]) -> None:
        """Store a whole run of a new task."""
        self._heads[head.task_id] = head
        self._entries += entries

    def copy_entries(self, source_id: str, target_id: str, *, length: int) -> None:
        """Copy the first entries of an ended task's journal for a new task."""
        self._tx.runs.copy_entries(source_id, target_id, length=length)

    def forget(self, task_ids: Collection[str], *, stored: bool = True) -> None:
        """Delete the runs of tasks; with `stored` False only what is gathered here."""
        for task_id in task_ids:
            self._loaded.pop(task_id, None)
            self._deferred.pop(task_id, None)
            self._heads.pop(task_id, None)
            self._trimmed.pop(task_id, None)
        self._entries = [entry for entry in self._entries if entry.task_id not in task_ids]
        self._past = [each for each in self._past if each.task_id not in task_ids]
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
        if self._past:
            self._flush_past()
        if self._forgotten:
            self._tx.runs.delete(self._forgotten)
        self._heads, self._entries, self._trimmed, self._forgotten = {}, [], {}, set()

    def _flush_past(self) -> None:
        self._tx.runs.put_past(self._past)
        measured = {
            each.task_id
            for each in self._past
            # Not by the numbers themselves: the state may change with every second write.
            # The larger a write is, the likelier it is chosen.
            if hash((each.seq, each.snapshots)) % _LARGE_BYTES < each.size + _LARGE_BYTES // _TRIM_EVERY
        }
        if measured:
            self._tx.runs.trim_past(measured, max_bytes=MAX_PAST_BYTES)
        self._past = []


def run_record(task: TaskRecord, head: RunHeadRecord, entries: Sequence[JournalRecord]) -> RunRecord:
    """Return what a task's run resumes from.

    Raises:
        UnavailableError: Another release has written the run, in a format that this one cannot read.
    """
    check_format(task, head.format)
    return RunRecord(
        header=RunHeader(fingerprint=head.fingerprint, library_version=head.library_version),
        needs=None if head.needs is None else RunNeeds.model_validate_json(head.needs),
        snapshot=head.snapshot,
        entries=[entry.entry for entry in entries],
        next_seq=task.journal_length,
        state=head.state,
        running_seconds=task.running_seconds,
        origin=None if head.origin is None else RunOrigin.model_validate_json(head.origin),
        snapshots=head.snapshots or 0,
    )


def check_format(task: TaskRecord, stored: int) -> None:
    """Raise `UnavailableError` if another release has stored a run, in a format that this one cannot read."""
    if stored != RUN_FORMAT:
        raise UnavailableError(
            f"the run of task {public_id(task.task_id)} is stored in format {stored}, and this release reads"
            f" format {RUN_FORMAT} only: start a control plane of the release that has written it"
        )
