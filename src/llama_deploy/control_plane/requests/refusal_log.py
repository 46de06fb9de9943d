"""Telling of refused reports and journal writes without filling the log."""

from __future__ import annotations

import logging
from typing import Final

from llama_deploy.errors import LlamaDeployError

logger = logging.getLogger(__name__)

_MOST_REMEMBERED: Final = 10_000


class Refusals:
    """Logs what instances send for attempts that are not theirs, once at WARNING for each attempt.

    An instance that was taken for dead may go on for long before it learns of it.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], None] = {}

    def note(self, what: str, error: LlamaDeployError, *, task_id: str, attempt: int) -> None:
        """Tell that something was refused for good: at WARNING the first time, at DEBUG after that."""
        key = (task_id, attempt)
        level = logging.DEBUG if key in self._told else logging.WARNING
        self._told[key] = None
        if len(self._told) > _MOST_REMEMBERED:
            del self._told[next(iter(self._told))]
        logger.log(
            level,
            "refused %s of attempt %d of task %s: %s",
            what,
            attempt,
            task_id,
            error,
            extra={"action": "refuse_report", "task_id": task_id, "attempt": attempt},
        )
