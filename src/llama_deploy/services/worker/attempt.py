"""An attempt in the hands of this instance, and what is reported of its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, Field

from llama_deploy.errors import LlamaDeployError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.endings import Ending
from llama_deploy.services.run.mailbox import Mailbox
from llama_deploy.services.run.workflow_run import WorkflowRun
from llama_deploy.types.instance_protocol import AttemptOutcome, EventPayload, InboxEntry, RunRecord
from llama_deploy.types.topics import CONTROL_PLANE

logger = logging.getLogger(__name__)

WRITE_DOWN_SECONDS: Final = 2.0
"""How long a run is tried to be written down before it is handed back."""


class WorkflowState(BaseModel):
    """A call of a workflow within a session."""

    hash: str | None = None
    """The signature of the workflow's own state as it was restored, or its digest if nothing is signed.

    It is the same in every process. None: no state.
    """
    state: dict[str, Any] = Field(default_factory=dict)
    """The session's state, the keys of services included."""
    run_kwargs: dict[str, Any] = Field(default_factory=dict)
    """The run arguments."""
    session_id: str | None = None
    task_id: str | None = None
    attempt: int = 1
    """Which try at the task this is."""


@dataclass(slots=True)
class Attempt:
    """An attempt that this instance has claimed."""

    key: AttemptKey
    state: WorkflowState
    input: str
    """The run arguments as they came: a JSON object, if the sender kept to the rules."""
    mailbox: Mailbox
    reports: AttemptReports
    keeps_journal: bool = False
    """Whether the run is written down: by the service's settings, or because an earlier attempt was."""
    record: RunRecord | None = None
    """What earlier attempts have left in the run's journal."""
    run: WorkflowRun | None = None
    cancelled: bool = False
    """Whether its end is asked for."""
    abandoned: bool = False
    """Whether it belongs to somebody else, so that nothing is to be reported."""

    def cancel(self) -> None:
        """End the run. Idempotent."""
        self.cancelled = True
        if self.run is not None:
            self.run.cancel()

    def abandon(self) -> None:
        """End the run and report nothing. Idempotent."""
        self.abandoned = True
        self.cancelled = True
        if self.run is not None:
            self.run.abandon()

    async def write_down(self) -> None:
        """Write the run down as it is, in the form that any version of the workflow library reads.

        It takes `WRITE_DOWN_SECONDS` at most; what is stored already is enough to go on.
        """
        journal = None if self.run is None else self.run.journal
        if journal is None:
            return
        try:
            async with asyncio.timeout(WRITE_DOWN_SECONDS):
                await journal.fold()
        except Exception as exc:  # noqa: BLE001 - the journal as it is will do
            logger.warning(
                "task %s is handed back without a snapshot: %r",
                self.key.task_id,
                exc,
                extra={"action": "fold_failed", "task_id": self.key.task_id},
            )

    async def put(self, entry: InboxEntry) -> None:
        """Take an entry of the inbox."""
        if self.mailbox.put(entry) and self.run is not None:
            await self.run.deliver()

    async def report(
        self,
        ending: Ending,
        session_state: dict[str, Any] | None,
        publish: Callable[[QueueMessage], Awaitable[None]],
    ) -> AttemptOutcome:
        """Publish how the attempt ended, with the events that were not sent yet.

        What the queue refuses for good, such as a result that is too large, makes the attempt fail.

        Raises:
            LlamaDeployError: The queue refuses even the failure.
        """
        try:
            first, events = await self.reports.settle()
        except LlamaDeployError as exc:
            ending, session_state, first, events = Ending.failed(exc), None, self.reports.discard(), []
        outcome = self._outcome(ending, session_state, first, events)
        try:
            await publish(_message(outcome))
        except LlamaDeployError as exc:
            outcome = self._outcome(Ending.failed(exc), None, first, [])
            await publish(_message(outcome))
        return outcome

    def _outcome(
        self, ending: Ending, session_state: dict[str, Any] | None, first: int, events: list[EventPayload]
    ) -> AttemptOutcome:
        return AttemptOutcome(
            task_id=self.key.task_id,
            attempt=self.key.attempt,
            token=self.key.token,
            first=first,
            events=events,
            status=ending.status,
            result=ending.result,
            value=ending.value,
            value_type=ending.value_type,
            error=ending.error,
            terminal_event=ending.terminal_event,
            event_value=ending.event_value,
            session_state=session_state,
        )


def _message(outcome: AttemptOutcome) -> QueueMessage:
    return QueueMessage(
        type=CONTROL_PLANE, action=ActionTypes.COMPLETED_TASK, data=outcome.model_dump(mode="json")
    )


async def publish_again(outcome: AttemptOutcome, publish: Callable[[QueueMessage], Awaitable[None]]) -> None:
    """Publish an outcome that may have been lost."""
    await publish(_message(outcome))
