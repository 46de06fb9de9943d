"""The attempts that an instance holds, as its heartbeats list them.

An attempt is held from its claim until the control plane reports that it has ended or belongs to another
instance. Until then the outcome of a finished attempt is kept, and published again if it seems lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.services.run.steps.step_history import StepHistory
from llama_deploy.services.run.time_budget import TimeBudget
from llama_deploy.types.instance_protocol import AttemptOutcome, HeldAttempt

_MAX_PATIENCE: Final = 60.0


@dataclass(slots=True)
class _Entry:
    held: HeldAttempt
    budget: TimeBudget | None = None
    """The time of its run while this is under way."""
    waits: Callable[[float], bool] | None = None
    """Whether its run only waits; see `Ledger.measure`."""
    steps: StepHistory | None = None
    """The steps of its run while this is under way."""
    outcome: AttemptOutcome | None = None
    size: int = 0
    publish_again_at: float = 0.0
    patience: float = 0.0


@dataclass(slots=True)
class Ledger:
    """What the instance holds. Only `snapshot` is thread-safe.

    Args:
        max_outcomes: With so many outcomes that are not confirmed, `is_full` is true, and the instance takes
            no more work until heartbeats have confirmed some.
        max_characters: The same for their length.
    """

    max_outcomes: int = 2_000
    max_characters: int = 64 * 1024 * 1024
    unconfirmed: int = field(default=0, init=False)
    """How many outcomes are not confirmed yet."""
    _entries: dict[tuple[str, int], _Entry] = field(default_factory=dict)
    _claiming: set[tuple[str, int]] = field(default_factory=set)
    _dropped: set[tuple[str, int]] = field(default_factory=set)
    """What was dropped while it was being claimed."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _size: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        """Whether the limits are reached."""
        return self.unconfirmed >= self.max_outcomes or self._size >= self.max_characters

    def snapshot(self, *, waiting_for: float = 0.0) -> tuple[list[HeldAttempt], list[tuple[str, int]]]:
        """Return what is held, and what is being claimed.

        Args:
            waiting_for: For how many seconds at least a run waits that `HeldAttempt.waits`.
        """
        with self._lock:
            held = [_measured(entry, waiting_for) for entry in self._entries.values()]
            return held, list(self._claiming)

    def knows(self, task_id: str, attempt: int) -> bool:
        """Whether an attempt is held or being claimed."""
        return (task_id, attempt) in self._entries or (task_id, attempt) in self._claiming

    @contextmanager
    def claiming(self, task_id: str, attempt: int) -> Iterator[None]:
        """Note that an attempt is being claimed while the context is open; `hold` it there once granted."""
        with self._lock:
            self._claiming.add((task_id, attempt))
        try:
            yield
        finally:
            with self._lock:
                self._claiming.discard((task_id, attempt))
                self._dropped.discard((task_id, attempt))

    def hold(self, task_id: str, attempt: int) -> bool:
        """Note an attempt that was claimed. False: it was dropped before the claim was answered."""
        with self._lock:
            if (task_id, attempt) in self._dropped:
                return False
            self._entries[task_id, attempt] = _Entry(HeldAttempt(task_id=task_id, attempt=attempt))
            return True

    def seen(self, task_id: str, attempt: int, *, inbox_seq: int) -> None:
        """Note up to which entry the attempt's inbox has arrived."""
        entry = self._entries.get((task_id, attempt))
        if entry is not None and inbox_seq > entry.held.inbox_seq:
            # Replaced, not changed: the heartbeat's thread may be reading the old one.
            entry.held = entry.held.model_copy(update={"inbox_seq": inbox_seq})

    def measure(
        self,
        task_id: str,
        attempt: int,
        budget: TimeBudget,
        waits: Callable[[float], bool] | None = None,
        steps: StepHistory | None = None,
    ) -> None:
        """Let heartbeats tell how long the attempt's run has been running, until it is finished.

        Args:
            task_id: The task.
            attempt: The number of the attempt.
            budget: The time of its run.
            waits: Whether the run only waits, for so many seconds at least. Called in any thread.
            steps: Its steps.
        """
        entry = self._entries.get((task_id, attempt))
        if entry is not None:
            entry.budget, entry.waits, entry.steps = budget, waits, steps

    def finish(self, outcome: AttemptOutcome, *, size: int, now: float, patience: float) -> None:
        """Keep the outcome of an attempt that is held, after it was published.

        Args:
            outcome: The outcome.
            size: Its approximate length in characters.
            now: Monotonic time in seconds.
            patience: Seconds until it is overdue.
        """
        entry = self._entries.get((outcome.task_id, outcome.attempt))
        if entry is None or entry.outcome is not None:
            return
        entry.outcome, entry.size = outcome, size
        entry.budget = entry.waits = entry.steps = None
        entry.publish_again_at, entry.patience = now + patience, patience
        self.unconfirmed += 1
        self._size += size

    def drop(self, task_id: str, attempt: int) -> None:
        """Remove an attempt, if it is held or being claimed."""
        with self._lock:
            entry = self._entries.pop((task_id, attempt), None)
            if entry is None and (task_id, attempt) in self._claiming:
                self._dropped.add((task_id, attempt))
        if entry is not None and entry.outcome is not None:
            self.unconfirmed -= 1
            self._size -= entry.size

    def overdue(self, now: float) -> list[AttemptOutcome]:
        """Return the outcomes to publish again. The patience with an outcome doubles each time."""
        overdue = []
        for entry in self._entries.values():
            if entry.outcome is not None and entry.publish_again_at <= now:
                entry.patience = min(2 * entry.patience, _MAX_PATIENCE)
                entry.publish_again_at = now + entry.patience
                overdue.append(entry.outcome)
        return overdue


def _measured(entry: _Entry, waiting_for: float) -> HeldAttempt:
    budget, waits = entry.budget, entry.waits
    if budget is None:
        return entry.held
    measured = {"running_seconds": budget.seconds, "timeout": budget.limit}
    present = [] if entry.steps is None else entry.steps.present()
    further = {"waits": waits is not None and waits(waiting_for), "steps": present}
    return entry.held.model_copy(update={**measured, **further})
