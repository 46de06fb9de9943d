"""Has the control plane store the writes of one attempt's journal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from llama_deploy.concurrency.backoff import Backoff
from llama_deploy.concurrency.retrying import Outage, retry
from llama_deploy.errors import FencedOutError, PayloadTooLargeError, UnavailableError
from llama_deploy.services.run.attempt_reports import AttemptKey, AttemptReports
from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.journal.journal_backlog import NOTHING, BacklogMark, JournalSize
from llama_deploy.services.run.journal.needs_tracker import NeedsTracker
from llama_deploy.services.run.journal.stored_state import WrittenState
from llama_deploy.services.run.run_clock import RunClock
from llama_deploy.services.run.run_ending import RunReleasedError
from llama_deploy.services.run.steps.open_steps import OpenSteps
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite, Parking, RunHeader
from llama_deploy.types.keys import public_id
from llama_deploy.types.workflow_shape import RunNeeds

logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=5.0)


@dataclass(slots=True, eq=False)
class JournalWriter:
    """Writes one attempt's journal. Each write also stores events that are not stored yet."""

    key: AttemptKey
    header: RunHeader
    """Identifies the workflow and the library that write."""
    needs: NeedsTracker
    """Knows what the journal needs."""
    write: Callable[[JournalWrite], Awaitable[JournalReply]]
    """Has the control plane store a write."""
    reports: AttemptReports
    """The events that the attempt has streamed."""
    clock: RunClock
    """Measures how long the run has worked."""
    size: JournalSize
    """What is written, beginning with what earlier attempts have written."""
    outage: Outage
    """Told while writes are retried; see `journal_outage`."""
    asked: OpenQuestions | None = None
    """What the run waits for, which is reported with the writes. None: nothing is."""
    open_steps: OpenSteps = field(default_factory=OpenSteps)
    """The steps that run again if the attempt is lost."""
    _closed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def has_waits(self) -> bool:
        """Whether what the run waits for has changed since the last write."""
        return self.asked is not None and self.asked.has_changed

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    async def store_events(self) -> None:
        """Store events and questions alone while there are more than one write may hold.

        Raises:
            LlamaDeployError: See `store`.
        """
        while self.reports.is_crowded or (self.asked is not None and self.asked.is_crowded):
            await self.store()

    async def store(
        self,
        mark: BacklogMark = NOTHING,
        *,
        entry: str | None = None,
        snapshot: str | None = None,
        state: WrittenState | None = None,
        parking: Parking | None = None,
        volatile: str | None = None,
        needs: RunNeeds | None = None,
    ) -> None:
        """Store one write; retries while the control plane does not answer.

        Args:
            mark: What of the backlog this stores.
            entry: As all others, see `JournalWrite`.
            snapshot: See there.
            state: The state of the run if it has changed.
            parking: See there.
            volatile: See there.
            needs: See there. A write without a snapshot gets those of the tracker if they have changed.

        Raises:
            FencedOutError: The attempt belongs to another instance.
            RunReleasedError: The writer was closed while it retried.
            LlamaDeployError: The control plane rejects the write.
        """
        if snapshot is None:
            needs = self.needs.take_changed()
        first, events = self.reports.not_stored()
        waits = None if self.asked is None else self.asked.report()
        steps, told = self.reports.steps.untold(), self.reports.steps.count
        write = JournalWrite(
            task_id=self.key.task_id,
            attempt=self.key.attempt,
            token=self.key.token,
            first=first,
            events=events,
            seq=self.size.seq,
            entry=entry,
            snapshot=snapshot,
            state=None if state is None else state.sealed,
            state_change=None if state is None else state.change,
            snapshots=self.size.snapshots,
            consumed=list(mark.consumed),
            step_ended=mark.step_ended,
            unfinished=self.open_steps.unfinished(streamed=self.reports.count, storing=mark.ends),
            header=self.header,
            needs=needs,
            running_seconds=self.clock.running_seconds,
            steps=steps,
            parking=parking,
            volatile=volatile,
            waits=waits,
        )
        await self._send(write)
        if entry is not None:
            self.size.add(entry)
        if state is not None:
            self.size.state = state.mark
        if waits is not None and self.asked is not None:
            self.asked.stored(waits)
        self.open_steps.stored(mark.ends)
        self.reports.steps.told(told)
        self.reports.stored(first + len(events))

    def close(self) -> None:
        """Stop retrying. Idempotent."""
        self._closed.set()

    async def _send(self, write: JournalWrite) -> None:
        """Send a write; if it is too large, without what only forks need."""
        try:
            await self._retry(write)
        except PayloadTooLargeError:
            if write.state_change is None:
                raise
            await self._retry(write.model_copy(update={"state_change": None}))

    async def _retry(self, write: JournalWrite) -> None:
        await retry(partial(self._try, write), backoff=_BACKOFF, outage=self.outage, pause=self._pause)

    async def _try(self, write: JournalWrite) -> None:
        reply = await self.write(write)
        if reply.stored:
            return
        if reply.retriable:
            raise UnavailableError(reply.reason)
        raise FencedOutError(
            f"the control plane rejected the journal of task {public_id(self.key.task_id)}: {reply.reason}",
            task_id=self.key.task_id,
            attempt=self.key.attempt,
        )

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise RunReleasedError


def journal_outage() -> Outage:
    """Return what logs once that journals cannot be written, for all the runs of an instance."""
    return Outage(
        on_start=lambda error: logger.warning(
            "runs wait until their journals can be written: %s", error, extra={"action": "journal_retry"}
        ),
        on_end=lambda: logger.info("journals are written again", extra={"action": "journal_recovered"}),
    )
