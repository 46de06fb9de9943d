"""Publishes the outcomes of attempts, again if one seems lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llama_deploy.messages import QueueMessage
from llama_deploy.services.background import BackgroundTasks
from llama_deploy.services.run.attempt_reports import report_message
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.services.worker.ledger import Ledger
from llama_deploy.types.instance_protocol import AttemptOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutcomeReporter:
    """Reports how attempts ended."""

    publish: Callable[[QueueMessage], Awaitable[None]]
    """Sends a message. Returns when it is accepted, raises when it is rejected permanently."""
    ledger: Ledger
    """Keeps outcomes until the control plane has confirmed them."""
    patience: float
    """Seconds after which an outcome that is not confirmed is published again."""
    tasks: BackgroundTasks = field(default_factory=lambda: BackgroundTasks("outcomes"), init=False)
    _again: set[tuple[str, int]] = field(default_factory=set, init=False)
    """Outcomes that are being published again."""

    async def report(
        self, attempt: Attempt, outcome: RunOutcome, session_state: dict[str, Any] | None
    ) -> bool:
        """Publish an attempt's outcome, and keep it until the control plane has confirmed it.

        Returns whether that was possible.

        Args:
            attempt: The attempt. Its events that were not sent yet travel with the outcome.
            outcome: Its outcome.
            session_state: Changes of the session's state.
        """
        key = attempt.key
        try:
            published = await attempt.reports.finish(outcome, session_state)
        except Exception:
            logger.exception(
                "cannot report the outcome of task %s; the task will run again elsewhere",
                key.task_id,
                extra={"action": "report_failed", "task_id": key.task_id},
            )
            self.ledger.drop(key.task_id, key.attempt)
            return False
        self.ledger.finish(published, size=outcome.size, now=time.monotonic(), patience=self.patience)
        return True

    def publish_overdue(self) -> None:
        """Publish outcomes again, in the background, that the control plane has not confirmed in time."""
        for outcome in self.ledger.overdue(time.monotonic()):
            if (outcome.task_id, outcome.attempt) not in self._again:
                self.tasks.spawn(self._publish_again(outcome))

    async def _publish_again(self, outcome: AttemptOutcome) -> None:
        key = outcome.task_id, outcome.attempt
        self._again.add(key)
        try:
            await self.publish(report_message(outcome))
        finally:
            self._again.discard(key)
