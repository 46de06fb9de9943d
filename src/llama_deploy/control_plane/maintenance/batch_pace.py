"""How much one transaction removes, and how long others have the store for themselves after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from llama_deploy.state_stores.base import StateStore

_MAX_PAUSE: Final = 1.0


class BatchLimits(NamedTuple):
    """What one transaction may remove."""

    first_tasks: int
    """How many tasks the first one removes."""
    min_tasks: int
    max_tasks: int
    max_rows: int
    """How many rows it deletes, besides those of the tasks."""
    max_bytes: int
    """How large these rows are together; a single row may be larger."""
    quick_seconds: float
    """One that works for less is followed by a larger one."""
    slow_seconds: float
    """One that works for longer is followed by a smaller one."""
    rest: float
    """How many times as long as a transaction has worked the pause after it is."""
    yielding: float
    """How many times as long as it has waited for its turn the pause is in addition."""
    min_pause: float
    """Seconds to wait at least."""


ONE_WRITER: Final = BatchLimits(
    first_tasks=16,
    min_tasks=8,
    max_tasks=24,
    max_rows=250,
    max_bytes=256 * 1024,
    quick_seconds=0.001,
    slow_seconds=0.004,
    rest=60.0,
    yielding=5.0,
    min_pause=0.01,
)
"""For a store in which all others wait while a transaction writes, so that they hardly notice it."""
MANY_WRITERS: Final = BatchLimits(
    first_tasks=80,
    min_tasks=40,
    max_tasks=200,
    max_rows=1000,
    max_bytes=1024 * 1024,
    quick_seconds=0.006,
    slow_seconds=0.015,
    rest=30.0,
    yielding=30.0,
    min_pause=0.02,
)
"""For a store in which transactions wait for each other only if they write the same rows."""


def limits_of(store: StateStore) -> BatchLimits:
    """Return the limits for a store."""
    return MANY_WRITERS if store.shared else ONE_WRITER


@dataclass(slots=True)
class BatchPace:
    """Adapts to the store: a transaction that works for long is followed by a smaller one.

    The pause after it depends on the time in which it waited, too. So a busy store is left alone for longer.
    """

    limits: BatchLimits
    tasks: int
    """How many tasks the next transaction may remove."""
    hurried: bool = False
    """Whether somebody waits for the removal, so that pauses are shorter."""
    pause: float = field(init=False)
    """Seconds to wait before the next transaction."""
    _begun: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Begin with the shortest pause."""
        self.pause = self.limits.min_pause

    @classmethod
    def of(cls, store: StateStore, *, hurried: bool = False) -> Self:
        """Return the pace at which removal from a store begins."""
        limits = limits_of(store)
        return cls(limits, limits.first_tasks, hurried)

    def begin(self) -> None:
        """A transaction has got its turn. Called by the function that runs in it, in any thread."""
        self._begun = time.monotonic()

    def note(self, since: float) -> None:
        """A transaction is over that was submitted at a time of the monotonic clock."""
        now = time.monotonic()
        self.adapt(working=now - max(self._begun, since), waiting=now - since)

    def adapt(self, *, working: float, waiting: float) -> None:
        """A transaction has worked for so many seconds of those in which it was waited for."""
        limits = self.limits
        if working < limits.quick_seconds:
            self.tasks = min(self.tasks * 3 // 2, limits.max_tasks)
        elif working > limits.slow_seconds:
            self.tasks = max(self.tasks * 2 // 3, limits.min_tasks)
        pause = limits.rest * working + limits.yielding * (waiting - working)
        self.pause = min(max(pause, limits.min_pause) / (5 if self.hurried else 1), _MAX_PAUSE)
