"""An attempt that this instance has claimed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.run_inbox import RunInbox
from llama_deploy.services.run.workflow_run import WorkflowRun
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.types.instance_protocol import RunRecord

logger = logging.getLogger(__name__)

_SNAPSHOT_SECONDS: Final = 2.0
"""How long writing a snapshot may take before a run is handed back."""


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt that this instance has claimed."""

    key: AttemptKey
    state: WorkflowState
    input: str
    """The run arguments as they came: a JSON object, if the sender kept to the protocol."""
    inbox: RunInbox
    reports: AttemptReports
    keeps_journal: bool = False
    """Whether the run is written to its journal: by the service's settings, or because it has one already."""
    record: RunRecord | None = None
    """What earlier attempts have left in the run's journal."""
    run: WorkflowRun | None = field(default=None, init=False)
    is_cancelled: bool = field(default=False, init=False)
    """Whether the attempt was asked to end."""
    is_abandoned: bool = field(default=False, init=False)
    """Whether the attempt belongs to another instance, so that nothing is reported."""

    def cancel(self) -> None:
        """End the run. Idempotent."""
        self.is_cancelled = True
        if self.run is not None:
            self.run.cancel()

    def abandon(self) -> None:
        """End the run and report nothing. Idempotent."""
        self.is_abandoned = self.is_cancelled = True
        if self.run is not None:
            self.run.abandon()

    async def write_snapshot(self) -> None:
        """Replace the run's journal by a snapshot, which any version of the workflow library can read.

        Gives up after a short time; what is stored already is enough to resume the run.
        """
        journal = None if self.run is None else self.run.journal
        if journal is None:
            return
        try:
            async with asyncio.timeout(_SNAPSHOT_SECONDS):
                await journal.compact()
        except Exception as exc:  # noqa: BLE001 - the journal as it is will do
            logger.warning(
                "task %s is handed back without a snapshot: %r",
                self.key.task_id,
                exc,
                extra={"action": "snapshot_failed", "task_id": self.key.task_id},
            )
