"""From where a run goes on that is forked before one of its steps. No I/O, no clock.

What is stored of a run is its present state, the entries of its journal since the last snapshot, and what its
writes have replaced: earlier journals, and how each state leads back to the one before. That is bounded, and
older releases do not write it, so each step back is checked against the marks of the states.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Self

from llama_deploy.control_plane.decisions.takeovers import MAX_TAKEOVERS, TakeoverReason, takeovers_of
from llama_deploy.state_stores.records import RunHeadRecord, TaskRecord
from llama_deploy.types.run_past import PastWrite, ReplacedJournal
from llama_deploy.types.run_points import RunPoint, mark_of
from llama_deploy.types.state_changes import StateChange
from llama_deploy.types.task_lists import EndedStep


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What is stored of the run of an ended task."""

    head: RunHeadRecord
    first: int
    """The number of its first journal entry."""
    length: int
    """How many entries it has, those before `first` included."""
    changes: Sequence[tuple[int, StateChange]]
    """The changes of its state, each with how many writes preceded it, in order."""
    replaced: Mapping[int, ReplacedJournal]
    """What its snapshots have replaced, by their numbers from 0."""
    mark: str
    """The mark of its present state."""
    unbroken: int
    """From which of `changes` on they lead to the present state without a gap."""

    @classmethod
    def of(cls, head: RunHeadRecord, *, first: int, length: int, past: Sequence[PastWrite]) -> Self:
        """Return a run, given what its writes have replaced, in their order."""
        changes = [(each.writes_before, each.state_change) for each in past if each.state_change is not None]
        replaced = {each.snapshots: each.replaced for each in past if each.replaced is not None}
        mark = mark_of(head.state)
        unbroken = _unbroken([change for _, change in changes], mark)
        return cls(head, first, length, changes, replaced, mark, unbroken)

    def changes_since(self, point: RunPoint) -> Sequence[StateChange] | None:
        """Return the changes that lead from the state of a point to the present one. None: there is a gap."""
        number = bisect_left(self.changes, point.writes_before, key=itemgetter(0))
        begun = self.changes[number][1].before if number < len(self.changes) else self.mark
        if number < self.unbroken or begun != point.state:
            return None
        return [change for _, change in self.changes[number:]]


def _unbroken(changes: Sequence[StateChange], mark: str) -> int:
    """Return from which change on they lead to the state with a mark, each from where the one before led."""
    for number in reversed(range(len(changes))):
        if changes[number].after != mark:
            return number + 1
        mark = changes[number].before
    return 0


@dataclass(frozen=True, slots=True)
class ForkedRun:
    """The run of an ended task as it was at a point."""

    head: RunHeadRecord
    length: int
    """How many entries the journal has, those before the first one included."""
    entries: Sequence[str] | None = None
    """The last of them, up to `length`. None: those of the ended task."""


def forked(run: StoredRun, point: RunPoint) -> ForkedRun | None:
    """Return a run as it was at a point. None: what is stored does not reach back to it."""
    changes = run.changes_since(point)
    if changes is None or not _has_journal(run, point):
        return None
    state = run.head.state
    for change in reversed(changes):
        state = None if state is None else change.undone(state)
    if mark_of(state) != point.state:
        return None  # the changes lead elsewhere than they say
    head = run.head._replace(state=state, snapshots=point.snapshots)
    if _is_present(run, point):
        return ForkedRun(head, point.entries)
    replaced = run.replaced[point.snapshots]
    head = head._replace(
        snapshot=replaced.snapshot,
        fingerprint=replaced.fingerprint,
        library_version=replaced.library_version,
        needs=replaced.needs,
    )
    return ForkedRun(head, point.entries, replaced.entries[: point.entries - replaced.first])


def first_reached(run: StoredRun | None, steps: Iterable[EndedStep]) -> EndedStep | None:
    """Return the first of the steps before which a run can be forked. None: there is none."""
    for step in steps:
        point = RunPoint.read(step.point)
        if point is not None and (point.is_beginning or (run is not None and _reaches(run, point))):
            return step
    return None


def first_attempt_of_run(task: TaskRecord) -> int:
    """Return the attempt that has begun the run. Somebody may have moved the task, to begin again."""
    known = takeovers_of(task)
    # Before the oldest takeover that is kept, there may have been another move.
    first = known[0].attempt - 1 if len(known) >= MAX_TAKEOVERS else 1
    return max([first, *(each.attempt for each in known if each.reason == TakeoverReason.MOVED)])


def _reaches(run: StoredRun, point: RunPoint) -> bool:
    return _has_journal(run, point) and run.changes_since(point) is not None


def _is_present(run: StoredRun, point: RunPoint) -> bool:
    """Whether no snapshot was written after a point."""
    return point.snapshots == (run.head.snapshots or 0)


def _has_journal(run: StoredRun, point: RunPoint) -> bool:
    if _is_present(run, point):
        return _covers(run.head.snapshot, run.first, run.length, point)
    journal = run.replaced.get(point.snapshots)
    if journal is None:
        return False
    return _covers(journal.snapshot, journal.first, journal.first + len(journal.entries), point)


def _covers(snapshot: str | None, first: int, length: int, point: RunPoint) -> bool:
    """Whether a journal has all that was written before a point since the last snapshot before it."""
    is_whole = snapshot is not None or first == 0
    return is_whole and first <= point.entries <= length
