"""The journal of a run, from which another instance goes on where this one was killed.

The library's ticks are what a run consists of: replaying them restores it. They are gathered while nothing
depends on them, and written before a step starts that does: one call of the control plane stores the
ticks, the run's state if it has changed, the events that it has streamed and the inbox entries that it has
taken. What the last step did travels with the attempt's outcome, so a run of one step writes nothing here.

Ticks are read again by the same version of the library only. A journal that has grown, and that of a run
that leaves its instance, is folded into a snapshot, which other versions read too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from llama_deploy import workflow_library as library
from llama_deploy.backoff import Backoff
from llama_deploy.errors import (
    FencedOutError,
    LlamaDeployError,
    PayloadTooLargeError,
    SerializationError,
)
from llama_deploy.services.run.attempt_reports import MAX_MESSAGE_CHARACTERS, AttemptKey, AttemptReports
from llama_deploy.services.run.journal_format import JournalFormat, Past, RunSnapshot
from llama_deploy.services.run.mailbox import Mailbox
from llama_deploy.services.run.sent_events import Sends
from llama_deploy.types.instance_protocol import JournalReply, JournalWrite, Parking
from llama_deploy.workflow_library import (
    InternalRunAdapter,
    StepWorkerResult,
    TickCancelRun,
    TickStepResult,
    TickTimeout,
    TickWaiterTimeout,
    WorkflowTick,
)

logger = logging.getLogger(__name__)

FOLD_AFTER: Final = 500
"""After so many ticks the journal is folded into a snapshot."""
FOLD_AFTER_CHARACTERS: Final = 1024 * 1024
"""After so many characters too, or after twice the length of the last snapshot if that is more."""
_RETRY: Final = Backoff(first=0.1, longest=5.0)


class RunLeftError(Exception):
    """The run is not this instance's any more; nothing of it may go on here."""


class RunJournal:
    """Writes one run down while it goes on. `close` it.

    Args:
        key: The attempt.
        form: How the run is written.
        write: Has the control plane store a write.
        mailbox: Tells which inbox entries the run has taken.
        reports: The events that the run has streamed.
        past: What earlier attempts have left.
        running_seconds: Tells how long the run has worked.
        on_failure: Called when the journal cannot be written any more, with the reason.
    """

    def __init__(
        self,
        *,
        key: AttemptKey,
        form: JournalFormat,
        write: Callable[[JournalWrite], Awaitable[JournalReply]],
        mailbox: Mailbox,
        reports: AttemptReports,
        past: Past,
        running_seconds: Callable[[], float],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._key = key
        self._form = form
        self._write = write
        self._mailbox = mailbox
        self._reports = reports
        self.waits = past.waits
        self.sends = Sends(past.received)
        """What the steps under way have sent."""
        self.broker = past.broker
        """From what the library goes on. None: the run is at its beginning."""
        self._running_seconds = running_seconds
        self._on_failure = on_failure
        record = past.record
        self._seq = 0 if record is None else record.next_seq
        entries = [] if record is None else record.entries
        self._since_snapshot = sum(entry.count("\n") for entry in entries)
        """How many ticks are written after the snapshot, if there is one."""
        self._size = sum(map(len, entries))
        """How many characters they take."""
        self._fold_after = FOLD_AFTER_CHARACTERS
        self._is_too_large = False
        """Whether the control plane does not take the run as a snapshot."""
        self._ticks: list[WorkflowTick] = []
        self._settled = 0
        """How many of the ticks may be written: those after which the run goes on."""
        self._is_due = False
        """Whether there are ticks that should be written as soon as they are settled."""
        self._is_wanted = False
        """Whether there is something to write."""
        self._consumed: list[int] = []
        self._state = past.state
        self._adapter: InternalRunAdapter | None = None
        self._lock = asyncio.Lock()
        self._background: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._closed = asyncio.Event()
        reports.on_crowded = self._store_soon

    def attach(self, adapter: InternalRunAdapter) -> None:
        """The run begins."""
        self._adapter = adapter

    def note(self, tick: WorkflowTick) -> None:
        """Take a tick."""
        # What ends a run from outside is not gone on with.
        if isinstance(tick, TickTimeout | TickCancelRun):
            return
        self._ticks.append(tick)
        self.waits.note(tick)
        if isinstance(tick, TickStepResult | TickWaiterTimeout):
            self._is_due = True

    async def before_steps(self, *, starting: bool) -> None:
        """Write what steps that start now depend on; if none does, let it be written beside the run.

        Raises:
            FencedOutError: The attempt belongs to somebody else.
            RunLeftError: The run has left this instance.
            SerializationError: A value cannot be written; the path says where.
        """
        if self._is_due or self._mailbox.has_consumed:
            # A tick that has ended the run does not come so far: it travels with the outcome.
            self._is_due = False
            self._settled = len(self._ticks)
            self._consumed += self._mailbox.take_consumed()
            self._is_wanted = True
        if starting:
            async with self._lock:  # the run may be about to leave
                if self._is_wanted and self._failure is None:
                    await self._store(fold=self._should_fold)
        elif self._is_wanted:
            self._store_soon()
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            # The answer to a write may come after the attempt was given to somebody else.
            raise RunLeftError

    async def park(self) -> bool:
        """Write the run down for its time outside memory, and end the attempt; return whether that was done.

        It is not done if the run has gone on, or could now, or if the library cannot write it down.

        Raises:
            LlamaDeployError: See `before_steps`.
        """
        async with self._lock:
            if self._failure is not None:
                return False
            await self._store_events()
            if not self._mailbox.is_quiet:
                return False  # something has come while earlier writes were under way
            # What comes from here on is beyond the number that the control plane is told.
            parking = Parking(inbox_seq=self._mailbox.seen, wake_in=self.waits.seconds_to_next())
            if not await self._fold(parking=parking):
                return False
            self._failure = RunLeftError()
            return True

    async def fold(self) -> None:
        """Replace what is written of the run by a snapshot, if anything is.

        Raises:
            LlamaDeployError: See `before_steps`.
        """
        async with self._lock:
            if self._failure is not None or not self._seq:
                return
            await self._store_events()
            if not self._mailbox.is_quiet:
                return  # whether the run has taken what was offered to it is not known yet
            # Without news the state is that of steps under way, which run again.
            await self._fold(with_state=self._is_due or self._is_wanted)

    def give_up(self) -> None:
        """Write nothing more; what waits for the control plane is given up. Idempotent."""
        self._closed.set()

    async def close(self) -> None:
        """Give up, and wait until nothing is under way. Idempotent."""
        self.give_up()
        if self._background is not None:
            await asyncio.wait([self._background])

    def _store_soon(self) -> None:
        if self._background is None or self._background.done():
            self._background = asyncio.create_task(
                self._store_in_background(), name=f"journal-{self._key.task_id}"
            )

    async def _store_in_background(self) -> None:
        try:
            while self._is_wanted or self._reports.is_crowded:
                async with self._lock:
                    if self._failure is not None or self._closed.is_set():
                        return
                    await self._store_events()
                    if self._is_wanted:
                        await self._store(fold=False)
        except Exception as exc:  # noqa: BLE001 - told to the run, which ends with it
            self._failure = self._failure or exc
            if not self._closed.is_set():
                self._on_failure(exc)

    async def _store(self, *, fold: bool) -> None:
        await self._store_events()
        self._is_wanted = False
        if fold and await self._fold():
            return
        ticks, self._ticks, self._settled = self._ticks[: self._settled], self._ticks[self._settled :], 0
        self._since_snapshot += len(ticks)
        *parts, last = self._parts(ticks) if ticks else [None]
        consumed, self._consumed = self._consumed, []
        step_ended = any(map(_ends_step, ticks))
        state = await self._changed_state()
        for part in parts:
            # The state goes first: what a step has put into it must not be lost when its result is stored.
            await self._send(self._compose(entry=self._entry(part), state=state))
            state = None
        await self._send(
            self._compose(entry=self._entry(last), state=state, consumed=consumed, step_ended=step_ended)
        )

    async def _store_events(self) -> None:
        """Store events for themselves while there are more than one write may hold."""
        while self._reports.is_crowded:
            await self._send(self._compose())

    def _parts(self, ticks: list[WorkflowTick]) -> list[list[str] | None]:
        """Return the ticks as texts, in parts that the control plane takes; a run can go on from each."""
        parts: list[list[str] | None] = []
        part: list[str] = []
        size = 0
        for tick in ticks:
            text = self._written(tick)
            if part and size + len(text) > MAX_MESSAGE_CHARACTERS:
                parts.append(part)
                part, size = [], 0
            part.append(text)
            size += len(text)
        return [*parts, part]

    def _entry(self, texts: list[str] | None) -> str | None:
        if texts is None:
            return None
        # A text of JSON has no line breaks.
        text = "\n".join(texts)
        return self._form.writing.seal(text, context=f"journal:{self._key.task_id}:{self._seq}")

    def _written(self, tick: WorkflowTick) -> str:
        try:
            return self._form.writing.write(tick, path="$")
        except SerializationError:
            # Said again in the words of the workflow, whose author knows nothing of ticks.
            for place, event in library.events_of(tick):
                self._form.writing.write(event, path=place)
            raise

    async def _fold(self, *, parking: Parking | None = None, with_state: bool = True) -> bool:
        """Replace what is written of the run by a snapshot; return whether that was done.

        It is not done if the library cannot write the run down, or if the control plane does not take so
        much. To park, the run must wait for something from outside.
        """
        if self._adapter is None or self._is_too_large:
            return False
        idle = parking is not None
        made = library.snapshot(
            self._adapter, self._form.writing.serializer, idle=idle, received=self.sends.received
        )
        if made is None:
            return False
        run, forget = made
        count, known = len(self._ticks), self._state
        self._consumed += self._mailbox.take_consumed()
        text = RunSnapshot(run=run, waits=self.waits.all()).model_dump_json()
        write = self._compose(
            snapshot=self._form.writing.seal(text, context=f"snapshot:{self._key.task_id}"),
            state=await self._changed_state() if with_state else None,
            consumed=self._consumed,
            step_ended=any(map(_ends_step, self._ticks[:count])),
            parking=parking,
        )
        try:
            await self._send(write)
        except PayloadTooLargeError as exc:
            self._is_too_large, self._state = True, known
            logger.warning(
                "task %s stays in memory, and its journal grows: %s",
                self._key.task_id,
                exc,
                extra={"action": "fold_refused", "task_id": self._key.task_id},
            )
            return False
        forget()
        del self._ticks[:count]
        self._settled = max(0, self._settled - count)
        self._consumed = self._consumed[len(write.consumed) :]
        self._since_snapshot = self._size = 0
        self._fold_after = max(FOLD_AFTER_CHARACTERS, 2 * len(text))
        return True

    @property
    def _should_fold(self) -> bool:
        return self._since_snapshot + self._settled >= FOLD_AFTER or self._size >= self._fold_after

    async def _changed_state(self) -> str | None:
        """Return the run's state if it is not what was written last."""
        store = None if self._adapter is None else self._adapter.get_state_store(())
        if store is None:
            return None
        # An empty text stands for a state that was emptied.
        text = await self._form.states.encode(store) or ""
        if text == (self._state or ""):
            return None
        self._state = text
        return self._form.writing.seal(text, context=f"state:{self._key.task_id}")

    def _compose(
        self,
        *,
        entry: str | None = None,
        snapshot: str | None = None,
        state: str | None = None,
        consumed: Sequence[int] = (),
        step_ended: bool = False,
        parking: Parking | None = None,
    ) -> JournalWrite:
        first, events = self._reports.not_stored()
        return JournalWrite(
            task_id=self._key.task_id,
            attempt=self._key.attempt,
            token=self._key.token,
            first=first,
            events=events,
            seq=self._seq,
            entry=entry,
            snapshot=snapshot,
            state=state,
            consumed=list(consumed),
            step_ended=step_ended,
            header=self._form.header,
            running_seconds=self._running_seconds(),
            parking=parking,
        )

    async def _send(self, write: JournalWrite) -> None:
        """Have a write stored, again and again while the control plane is away."""
        failures = 0
        while True:
            reply = await self._try(write)
            if reply.stored:
                self._seq += write.entry is not None
                self._size += len(write.entry or "")
                self._reports.stored(write.first + len(write.events))
                return
            if not reply.retriable:
                raise FencedOutError(
                    f"the journal of task {self._key.task_id} was refused: {reply.reason}",
                    task_id=self._key.task_id,
                    attempt=self._key.attempt,
                )
            failures += 1
            if failures == 1:
                logger.warning(
                    "task %s waits until its journal can be written: %s",
                    self._key.task_id,
                    reply.reason,
                    extra={"action": "journal_retry", "task_id": self._key.task_id},
                )
            await self._pause(_RETRY.delay(failures))

    async def _try(self, write: JournalWrite) -> JournalReply:
        try:
            return await self._write(write)
        except LlamaDeployError as exc:
            if not exc.retriable:
                raise
            return JournalReply(stored=False, reason=str(exc), retriable=True)

    async def _pause(self, seconds: float) -> None:
        """Wait before another try.

        Raises:
            RunLeftError: The journal was closed.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise RunLeftError


def _ends_step(tick: WorkflowTick) -> bool:
    """Whether a step has come to its end. A question is none, nor an error, which a retry may follow."""
    return isinstance(tick, TickStepResult) and any(
        isinstance(each, StepWorkerResult) for each in tick.result
    )
