"""Logging rejected reports and journal writes without filling the log."""

from __future__ import annotations

import logging
from typing import Final

from llama_deploy.errors import LlamaDeployError

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS: Final = 10_000


class RejectionLog:
    """Logs what is rejected because its attempt belongs to another sender: once at WARNING for each attempt.

    An instance that has lost an attempt may send reports for a while before it learns of the loss.
    """

    def __init__(self) -> None:
        self._logged: dict[tuple[str, int], None] = {}

    def note(self, what: str, error: LlamaDeployError, *, task_id: str, attempt: int) -> None:
        """Log a permanent rejection: at WARNING the first time for an attempt, then at DEBUG."""
        key = (task_id, attempt)
        level = logging.DEBUG if key in self._logged else logging.WARNING
        self._logged[key] = None
        if len(self._logged) > _MAX_ATTEMPTS:
            del self._logged[next(iter(self._logged))]
        logger.log(
            level,
            "rejected %s of attempt %d of task %s: %s",
            what,
            attempt,
            task_id,
            error,
            extra={"action": "reject_report", "task_id": task_id, "attempt": attempt},
        )
