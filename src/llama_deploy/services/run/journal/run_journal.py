"""The journal of a run, with which another instance resumes the run if this one dies.

A run consists of the library's ticks: replaying them restores it. Ticks are collected while nothing depends
on them, and written before a step starts that does. One call of the control plane stores the ticks, the
run's state if it has changed, the events that it has streamed and the inbox entries that it has taken. The
result of the last step travels with the attempt's outcome, so a run of one step writes nothing here.

Only the same version of the library can read ticks. A long journal, and the journal of a run that leaves its
instance, is compacted: replaced by a snapshot, which other versions can read too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from llama_deploy.errors import PayloadTooLargeError, SerializationError
from llama_deploy.services.run.inbox.run_inbox import RunInbox
from llama_deploy.services.run.journal.journal_backlog import Backlog
from llama_deploy.services.run.journal.journal_writer import JournalWriter
from llama_deploy.services.run.journal.run_texts import RunTexts
from llama_deploy.services.run.journal.volatility import Volatility
from llama_deploy.services.run.run_ending import RunReleasedError
from llama_deploy.types.instance_protocol import Parking
from llama_deploy.workflow_library import (
    InternalRunAdapter,
    PendingWorker,
    TickStepResult,
    WorkflowTick,
    execution_of,
)

logger = logging.getLogger(__name__)

_KEEP_SECONDS: Final = 2.0
"""How long the end of a run may be delayed to store what its steps have finished."""


@dataclass(slots=True, eq=False)
class RunJournal:
    """Writes one run while it continues. `close` it."""

    texts: RunTexts
    """What is written of the run."""
    writer: JournalWriter
    inbox: RunInbox
    on_failure: Callable[[Exception], None]
    """Called with the reason when the journal cannot be written any more."""
    volatility: Volatility = field(default_factory=Volatility)
    """Nothing is written of a volatile run any more."""
    fits: bool = field(default=True, init=False)
    """Whether the control plane accepts a snapshot of this size. If not, the run cannot be parked."""
    _backlog: Backlog = field(default_factory=Backlog, init=False)
    _is_time_due: bool = field(default=False, init=False)
    """Whether the time is to be stored that the run has worked."""
    _is_wait_due: bool = field(default=False, init=False)
    """Whether what the run waits for is to be stored."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _background: asyncio.Task[None] | None = field(default=None, init=False)
    _failure: Exception | None = field(default=None, init=False)

    def attach(self, adapter: InternalRunAdapter) -> None:
        """Take the library's access to the run, which begins now."""
        self.texts.attach(adapter)

    def on_tick(self, tick: WorkflowTick) -> int | None:
        """Add a tick. Return the number of the step run that ends with it, None if none does."""
        if self.volatility:
            return None
        self._backlog.add(tick)
        return self.writer.open_steps.end(execution_of(tick)) if isinstance(tick, TickStepResult) else None

    def on_start(self, step: PendingWorker) -> int | None:
        """A step begins. Return the number of its run, None if the run is not written any more."""
        if self.volatility:
            return None
        return self.writer.open_steps.begin(execution_of(step), streamed=self.writer.reports.count)

    async def before_steps(self, *, starting: bool) -> None:
        """Write what steps that start now depend on. If no step starts, write it in the background.

        Raises:
            FencedOutError: The attempt belongs to another instance.
            RunReleasedError: The run has left this instance.
            SerializationError: A value cannot be written, and the run may not be volatile; the path says
                where.
        """
        # A tick that ends the run does not get here: it travels with the outcome.
        consumed = self.inbox.take_consumed()
        if (reason := self.volatility.due) is not None:
            async with self._lock:
                if self._failure is None:
                    await self._become_volatile(reason)
        if not self.volatility:
            self._backlog.settle(consumed)
        if starting:
            async with self._lock:  # the run may be about to leave
                if self._backlog.is_ready and self._failure is None:
                    await self._store(compact=self.writer.size.is_due(self._backlog.settled))
        elif self._backlog.is_ready:
            self._store_soon()
        if self._failure is not None:
            raise self._failure
        if self.writer.is_closed:
            # The attempt may have been given to another instance while a write was under way.
            raise RunReleasedError

    async def park(self) -> bool:
        """Write a snapshot and end the attempt; return whether that was done.

        It is not done if the run has continued or could continue now, or if the library cannot write it.

        Raises:
            LlamaDeployError: See `before_steps`.
        """
        async with self._lock:
            if self._failure is not None or self.volatility:
                return False
            await self.writer.store_events()
            if not self.inbox.is_quiet:
                return False  # something has come during earlier writes
            # The control plane wakes the run for every inbox entry above this number.
            wake_in = self.texts.history.waits.seconds_to_next(now=self.writer.clock.now())
            parking = Parking(inbox_seq=self.inbox.seen, wake_in=wake_in)
            try:
                if not await self._compact(parking=parking):
                    return False
            except SerializationError as exc:
                await self._become_volatile(self.volatility.reason_for(exc))
                return False
            self._failure = RunReleasedError()
            return True

    async def compact(self) -> None:
        """Replace what is written of the run by a snapshot, if anything is written.

        Raises:
            LlamaDeployError: See `before_steps`.
        """
        async with self._lock:
            if self._failure is not None or self.volatility or not self.writer.size.seq:
                return
            await self.writer.store_events()
            if not self.inbox.is_quiet:
                return  # it is not known yet whether the run has taken the offered event
            # Without news the state is that of running steps, which run again.
            await self._compact(with_state=self._backlog.has_news)

    async def keep(self, *, failed: bool) -> None:
        """Write what steps have finished in a run that has ended without success, for a retry.

        Usually that is written already: only steps that ran beside the last one have finished since. Gives up
        after a short time; what is stored will do.

        Args:
            failed: See `Backlog.settle_rest`.
        """
        try:
            async with asyncio.timeout(_KEEP_SECONDS), self._lock:
                if self._failure is not None or self.volatility or self.writer.is_closed:
                    return
                self._backlog.settle_rest(self.inbox.take_consumed(), failed=failed)
                if self._backlog.is_ready:
                    await self._write(compact=False)
        except Exception as exc:  # noqa: BLE001 - the outcome of the run counts
            logger.warning(
                "task %s: steps that have just finished run again if it is retried: %r",
                self.writer.key.task_id,
                exc,
                extra={"action": "journal_not_kept", "task_id": self.writer.key.task_id},
            )

    def stop(self) -> None:
        """Write nothing more, and stop waiting for the control plane. Idempotent."""
        self.writer.close()

    async def close(self) -> None:
        """Stop, and wait until no write is under way. Idempotent."""
        self.stop()
        if self._background is not None:
            await asyncio.wait([self._background])
        self.texts.detach()

    def make_room(self) -> None:
        """Store events in the background if so many wait that steps may have to."""
        if self.writer.reports.is_crowded:
            self._store_soon()

    def store_time(self) -> None:
        """Store in the background how long the run has worked. Nothing else has to be written."""
        if not self.volatility:
            self._is_time_due = True
            self._store_soon()

    def tell_waits(self) -> None:
        """Store in the background what the run waits for."""
        if self.volatility:
            self.writer.reports.tell_waits()
        else:
            self._is_wait_due = True
            self._store_soon()

    def _store_soon(self) -> None:
        if self._background is None or self._background.done():
            name = f"journal-{self.writer.key.task_id}"
            self._background = asyncio.create_task(self._store_in_background(), name=name)

    @property
    def _has_to_store(self) -> bool:
        is_due = self._is_time_due or self._is_wait_due
        return is_due or self._backlog.is_ready or self.writer.reports.is_crowded

    async def _store_in_background(self) -> None:
        try:
            while self._has_to_store:
                async with self._lock:
                    if self._failure is not None or self.writer.is_closed:
                        return
                    await self.writer.store_events()
                    is_more_due = self._is_time_due or (self._is_wait_due and self.writer.has_waits)
                    self._is_time_due = self._is_wait_due = False
                    if self._backlog.is_ready:
                        await self._store(compact=False)
                    elif is_more_due and not self.volatility:
                        await self.writer.store()
        except Exception as exc:  # noqa: BLE001 - reported to the run, which ends with it
            self._failure = self._failure or exc
            if not self.writer.is_closed:
                self.on_failure(exc)

    async def _store(self, *, compact: bool) -> None:
        try:
            await self._write(compact=compact)
        except SerializationError as exc:
            await self._become_volatile(self.volatility.reason_for(exc))

    async def _become_volatile(self, reason: str) -> None:
        """Write nothing of the run from now on, and have what is written deleted."""
        if self.volatility:
            return
        await self.writer.store(volatile=reason)
        self._backlog = Backlog()
        self.texts.forget()
        self.writer.reports.keep_nothing()
        self.writer.size.is_final = True
        self.volatility.begin(reason)

    async def _write(self, *, compact: bool) -> None:
        await self.writer.store_events()
        if compact and await self._compact():
            return
        ticks, taken = self._backlog.take()
        has_asked = self.inbox.has_asked
        entries = self.texts.entries(ticks, first=self.writer.size.seq, has_asked=has_asked)
        # A state without an entry would be that of running steps, which run again.
        state = await self.texts.changed_state() if entries else None
        for entry in entries[:-1]:
            # The state goes first: what a step has put into it must not be lost when its result is stored.
            await self.writer.store(entry=entry, state=state)
            state = None
        await self.writer.store(taken, entry=entries[-1] if entries else None, state=state)

    async def _compact(self, *, parking: Parking | None = None, with_state: bool = True) -> bool:
        """Write a snapshot; return whether that was done.

        It is not done if the library cannot write the run, or if the control plane does not accept so much.
        To be parked, the run must wait for something from outside.
        """
        if not self.fits:
            return False
        made = self.texts.snapshot(
            idle=parking is not None, has_asked=self.inbox.has_asked, counts=self.inbox.asked_counts
        )
        if made is None:
            return False
        mark = self._backlog.mark(self.inbox.take_consumed())
        known_state, task_id = self.texts.state, self.writer.key.task_id
        state = await self.texts.changed_state() if with_state else None
        try:
            await self.writer.store(
                mark,
                snapshot=self.texts.seal("snapshot", made.text),
                state=state,
                needs=self.texts.needs.needs_of(made.folded),
                parking=parking,
            )
        except PayloadTooLargeError as exc:
            self.fits, self.texts.state = False, known_state
            logger.warning(
                "task %s cannot leave memory, and its journal keeps growing: its snapshot is too large: %s",
                task_id,
                exc,
                extra={"action": "snapshot_rejected", "task_id": task_id},
            )
            return False
        made.forget()
        self.texts.needs.fold(made.folded)
        self._backlog.drop(mark)
        self.writer.size.reset(len(made.text))
        return True
