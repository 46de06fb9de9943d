"""The bookkeeping of a journal: what is still to be written, and how much is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.types.instance_protocol import RunRecord
from llama_deploy.types.run_points import NO_MARK, RunPoint, mark_of
from llama_deploy.workflow_library import (
    StepWorkerFailed,
    StepWorkerResult,
    TickCancelRun,
    TickStepResult,
    TickTimeout,
    TickWaiterTimeout,
    WorkflowTick,
)

COMPACT_AFTER_TICKS: Final = 500
"""After how many ticks a journal is replaced by a snapshot, unless they are shorter than the last one."""
COMPACT_AFTER_CHARACTERS: Final = 1024 * 1024
"""After how many characters it is, or after twice the length of the last snapshot if that is more."""


@dataclass(slots=True)
class Backlog:
    """What a run has done that its journal does not hold yet."""

    is_ready: bool = False
    """Whether there is something to write."""
    settled: int = 0
    """How many ticks may be written: those after which the run continues."""
    _ticks: list[WorkflowTick] = field(default_factory=list)
    _consumed: list[int] = field(default_factory=list)
    """The inbox entries that the run has taken."""
    _has_progress: bool = False
    """Whether the ticks contain progress since the last `settle`."""

    @property
    def has_news(self) -> bool:
        """Whether the run has made progress that is not written."""
        return self._has_progress or self.is_ready

    def add(self, tick: WorkflowTick) -> None:
        """Add a tick, unless it ends the run from outside: a resumed run must not repeat that."""
        if isinstance(tick, TickTimeout | TickCancelRun):
            return
        self._ticks.append(tick)
        if _is_progress(tick):
            self._has_progress = True

    def settle(self, consumed: Sequence[int]) -> None:
        """Release the ticks so far for writing, if they contain progress or inbox entries were consumed."""
        if self._has_progress or consumed:
            self._has_progress = False
            self.settled = len(self._ticks)
            self._consumed += consumed
            self.is_ready = True

    def settle_rest(self, consumed: Sequence[int], *, failed: bool) -> None:
        """Release all ticks of a run that has ended, from which a retry goes on.

        Args:
            consumed: The inbox entries that the run has taken.
            failed: Whether it ends with the error of a step. That step is to run again.
        """
        if failed:
            self._drop_from_last_error()
        self._has_progress = any(_is_progress(tick) for tick in self._ticks[self.settled :])
        self.settle(consumed)

    def _drop_from_last_error(self) -> None:
        for place in range(len(self._ticks) - 1, self.settled - 1, -1):
            tick = self._ticks[place]
            if isinstance(tick, TickStepResult) and _has_failed(tick):
                del self._ticks[place:]
                return

    def take(self) -> tuple[list[WorkflowTick], BacklogMark]:
        """Remove and return the settled ticks, with a mark of what was taken."""
        ticks, self._ticks, self.settled = self._ticks[: self.settled], self._ticks[self.settled :], 0
        consumed, self._consumed = self._consumed, []
        self.is_ready = False
        return ticks, BacklogMark.of(ticks, consumed)

    def mark(self, consumed: Sequence[int]) -> BacklogMark:
        """Add consumed inbox entries, and return a mark of what the backlog holds now."""
        self._consumed += consumed
        return BacklogMark.of(self._ticks, list(self._consumed))

    def drop(self, mark: BacklogMark) -> None:
        """Remove what the backlog held at a mark."""
        del self._ticks[: mark.ticks]
        del self._consumed[: len(mark.consumed)]
        self.settled = max(0, self.settled - mark.ticks)
        self.is_ready = self.settled > 0 or bool(self._consumed)


@dataclass(frozen=True, slots=True)
class BacklogMark:
    """What a backlog held at one moment, or what was taken from it."""

    ticks: int = 0
    consumed: Sequence[int] = ()
    """The inbox entries."""
    ends: int = 0
    """How many starts of steps end among the ticks."""
    step_ended: bool = False
    """See `JournalWrite.step_ended`."""

    @classmethod
    def of(cls, ticks: Sequence[WorkflowTick], consumed: Sequence[int]) -> BacklogMark:
        """Return the mark of ticks and consumed inbox entries."""
        return cls(len(ticks), consumed, count_ends(ticks), ends_step(ticks))


NOTHING: Final = BacklogMark()


@dataclass(slots=True)
class JournalSize:
    """How much is written of a run since its last snapshot."""

    seq: int
    """How many entries were written, over all attempts."""
    ticks: int
    characters: int
    snapshot: int
    """How many characters the last snapshot has.

    As much is written as entries before the next one, so snapshots at most double what is written, however
    many events wait in a run.
    """
    snapshots: int = 0
    """How many snapshots were written, over all attempts."""
    state: str = NO_MARK
    """The mark of the state that was written last."""
    is_final: bool = False
    """Whether nothing is written of the run any more."""

    @property
    def point(self) -> RunPoint:
        """Where the journal is."""
        return RunPoint(self.seq, self.snapshots, self.state)

    def point_of_step(self) -> str | None:
        """Return the point at which a step begins, see `StepEnd.point`. None: one cannot go back to it."""
        return None if self.is_final else str(self.point)

    @classmethod
    def of(cls, record: RunRecord | None) -> JournalSize:
        """Return the size of what earlier attempts have written."""
        entries = [] if record is None else record.entries
        return cls(
            seq=0 if record is None else record.next_seq,
            ticks=sum(entry.count("\n") for entry in entries),
            characters=sum(map(len, entries)),
            snapshot=0 if record is None else len(record.snapshot or ""),
            snapshots=0 if record is None else record.snapshots,
            state=NO_MARK if record is None else mark_of(record.state),
        )

    def add(self, entry: str) -> None:
        """Count an entry that was written."""
        self.seq += 1
        self.ticks += entry.count("\n")
        self.characters += len(entry)

    def reset(self, snapshot_length: int) -> None:
        """Count from a snapshot that was written."""
        self.ticks = self.characters = 0
        self.snapshot = snapshot_length
        self.snapshots += 1

    def is_due(self, more_ticks: int) -> bool:
        """Whether a snapshot should replace the entries instead of writing that many more ticks."""
        if self.ticks + more_ticks >= COMPACT_AFTER_TICKS:
            return self.characters >= self.snapshot
        return self.characters >= max(COMPACT_AFTER_CHARACTERS, 2 * self.snapshot)


def _is_progress(tick: WorkflowTick) -> bool:
    return isinstance(tick, TickStepResult | TickWaiterTimeout)


def _has_failed(tick: TickStepResult) -> bool:
    return any(isinstance(each, StepWorkerFailed) for each in tick.result)


def count_ends(ticks: Sequence[WorkflowTick]) -> int:
    """Return how many starts of steps end among the ticks, however they end."""
    return sum(isinstance(tick, TickStepResult) for tick in ticks)


def ends_step(ticks: Sequence[WorkflowTick]) -> bool:
    """Whether a step has ended among the ticks. A question or an error that may be retried is not an end."""
    return any(
        isinstance(each, StepWorkerResult)
        for tick in ticks
        if isinstance(tick, TickStepResult)
        for each in tick.result
    )
