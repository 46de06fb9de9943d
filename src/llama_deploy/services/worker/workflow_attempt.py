"""An attempt that runs a workflow."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.workflow_run import WorkflowRun
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.services.worker.attempt import Attempt
from llama_deploy.types.instance_protocol import InboxEntry, RunRecord

logger = logging.getLogger(__name__)

_SNAPSHOT_SECONDS: Final = 2.0
"""How long writing a snapshot may take before a run is handed back."""


@dataclass(slots=True, eq=False)
class WorkflowAttempt(Attempt):
    """An attempt that runs a workflow."""

    state: WorkflowState
    input: str
    """The run arguments as they came: a JSON object, if the sender kept to the protocol."""
    inbox: RunInbox
    asked: OpenQuestions
    """What the run waits for."""
    keeps_journal: bool = False
    """Whether the run is written to its journal: by the service's settings, or because it has one already."""
    volatile_reason: str | None = None
    """Why an earlier attempt has made the run volatile."""
    record: RunRecord | None = None
    """What earlier attempts have left in the run's journal."""
    run: WorkflowRun | None = field(default=None, init=False)
    published: RunOutcome | None = field(default=None, init=False)
    """The outcome that an override of `process_call` has published."""

    @property
    def is_parked(self) -> bool:
        """Whether the run has left memory, to be resumed when something wakes it."""
        return self.run is not None and self.run.is_parked

    @property
    def writes_journal(self) -> bool:
        """Whether the run is written to its journal at present."""
        return self.run is not None and self.run.journal is not None and not self.run.journal.volatility

    @property
    def restart_reason(self) -> str | None:
        """Why nothing of the run is stored. None: something is, or it has not begun."""
        if self.run is None:
            return None
        journal = self.run.journal
        if journal is not None:
            return journal.volatility.reason
        return self.volatile_reason or "its durability is 'task'"

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

    def park(self) -> None:
        """Let the run leave memory if it only waits."""
        if self.run is not None:
            self.run.park()

    def tell_waits(self) -> None:
        """Have the control plane store what the run waits for."""
        if self.run is not None and self.run.journal is not None:
            self.run.journal.tell_waits()
        else:
            self.reports.tell_waits()

    async def deliver(self, entry: InboxEntry) -> None:
        """Put an event into the run's inbox."""
        await self.inbox.put(entry)
        if self.run is not None and self.run.clock.is_waiting and self.inbox.is_quiet:
            self.asked.on_waiting()
            self.tell_waits()  # it still waits, although something has come

    @property
    def is_answered(self) -> bool:
        """Whether `process_call` has published an outcome."""
        return self.published is not None

    def answer(self, outcome: RunOutcome) -> bool:
        """Keep an outcome, which is reported when `process_call` returns. False: there is one already."""
        if self.published is not None or self.is_cancelled:
            return False
        self.published = outcome
        return True

    async def close(self) -> None:
        """Stop publishing its events, and release the run, which refers to this attempt. Idempotent."""
        await self.reports.close()
        self.run = None

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
