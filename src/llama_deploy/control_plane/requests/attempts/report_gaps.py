"""How long reports that should have come before others have been missing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from llama_deploy.errors import EventsMissingError
from llama_deploy.messages import QueueMessage

_MAX_GAPS: Final = 10_000


class ReportGaps:
    """Knows which attempts miss reports, and since when.

    Args:
        lost_after: Seconds after which missing reports count as lost.
    """

    def __init__(self, *, lost_after: float) -> None:
        self._lost_after = lost_after
        self._gaps: dict[tuple[str, int], _Gap] = {}

    def close(self, message: QueueMessage) -> None:
        """A report was handled, so none before it is missing. A malformed one is ignored."""
        match message.data:
            case {"task_id": str(task_id), "attempt": int(attempt)}:
                self._gaps.pop((task_id, attempt), None)

    def is_lost(self, message: QueueMessage, missing: EventsMissingError) -> bool:
        """Note what is missing before a report, and return whether it counts as lost.

        Another control plane may have stored what filled an earlier gap, so a gap is identified by the number
        of its first event.
        """
        attempt, now = (message.data["task_id"], message.data["attempt"]), time.monotonic()
        gap = self._gaps.get(attempt)
        if gap is None or gap.expected != missing.expected:
            gap = self._gaps[attempt] = _Gap(missing.expected, since=now)
        if len(self._gaps) > _MAX_GAPS:
            del self._gaps[next(iter(self._gaps))]
        return now - gap.since >= self._lost_after


@dataclass(frozen=True, slots=True)
class _Gap:
    """What is missing of an attempt, and since when."""

    expected: int | None
    """The number of the first event that is missing."""
    since: float
