"""Which steps of a run would run again if its instance were lost now, and which events they have streamed.

Each run of a step in an attempt has a number, which its events carry.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from llama_deploy.types.instance_protocol import UnfinishedSteps

NO_STEP: Final = -1
"""The number in events that no step has streamed, and that therefore do not come again."""
_MAX_LISTED: Final = 100
"""With more unfinished runs than these, they are not listed."""

step_run: ContextVar[int | None] = ContextVar("step_run", default=None)
"""The number of the step run to which what happens in this context belongs. None: not known."""


class _Begun(NamedTuple):
    """A run of a step."""

    number: int
    streamed: int
    """How many events the attempt had streamed when it began."""


@dataclass(slots=True)
class OpenSteps:
    """The runs of steps that have begun and whose end is not stored.

    Events and runs are counted from the beginning of the attempt.
    """

    _count: int = 0
    _running: dict[Hashable, _Begun] = field(default_factory=dict)
    """The oldest first."""
    _ended: list[_Begun | None] = field(default_factory=list)
    """Those whose end is not stored, in the order of their ends. None: the beginning is not known."""

    def begin(self, step: Hashable, *, streamed: int) -> int:
        """A step begins after `streamed` events. Return the number of its run."""
        begun = self._running.setdefault(step, _Begun(self._count, streamed))
        self._count += begun.number == self._count
        return begun.number

    def end(self, step: Hashable) -> int | None:
        """A step has ended, which is not stored yet. Return the number of its run. None: it is not known."""
        begun = self._running.pop(step, None)
        self._ended.append(begun)
        return None if begun is None else begun.number

    def unfinished(self, *, streamed: int, storing: int = 0) -> UnfinishedSteps:
        """Return what may be streamed again.

        Args:
            streamed: How many events were streamed.
            storing: How many ends are about to be stored.
        """
        ended = [each for each in self._ended[storing:] if each is not None]
        listed = [*ended, *self._running.values()] if len(ended) + len(self._running) <= _MAX_LISTED else None
        oldest = [*ended, *([next(iter(self._running.values()))] if self._running else [])]
        return UnfinishedSteps(
            first_event=min([streamed, *(each.streamed for each in oldest)]),
            runs=None if listed is None else [each.number for each in listed],
            begun=self._count,
        )

    def stored(self, count: int) -> None:
        """The next `count` ends are stored."""
        del self._ended[:count]
