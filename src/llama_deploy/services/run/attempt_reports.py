"""What an attempt reports to the control plane: its events as they come, and its outcome once.

The first event leaves at once. Events that come while a message is on its way are batched into the next
message, and the last ones travel with the outcome. A short task costs one message, a fast stream a few.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from llama_deploy.errors import ClosedError, LlamaDeployError
from llama_deploy.messages import ActionTypes, QueueMessage
from llama_deploy.services.run.event_shares import MAX_SHARE
from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.progress_text import ProgressText
from llama_deploy.services.run.run_outcome import RunOutcome
from llama_deploy.services.run.steps.step_history import StepHistory
from llama_deploy.services.values.payloads import StreamedEvent
from llama_deploy.types.instance_protocol import AttemptEvents, AttemptOutcome, EventPayload
from llama_deploy.types.questions import WaitReport
from llama_deploy.types.topics import CONTROL_PLANE

MAX_MESSAGE_CHARACTERS: Final = 512 * 1024
"""The size at which a batch of events is stored with the journal; a larger event is stored alone."""
MAX_BATCH_CHARACTERS: Final = 128 * 1024
"""The size at which a batch of events is sent; a larger event travels alone.

Small enough that the whole message stays below `MAX_REPORT_BYTES`.
"""
MAX_WAITING: Final = 5_000
"""How many events are kept before a step that streams another one has to wait."""


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """Identifies an attempt and proves its ownership."""

    task_id: str
    attempt: int
    token: str


@dataclass(slots=True)
class EventBuffer:
    """The events of an attempt that are kept until they are sent, or stored by the journal."""

    first: int = 0
    """How many events of the attempt were dropped from the front."""
    sent: int = 0
    """How many events of the attempt were sent."""
    max_characters: int = MAX_SHARE
    """How much text is kept before the next event has to wait."""
    _size: int = 0
    _events: deque[StreamedEvent] = field(default_factory=deque)

    @property
    def count(self) -> int:
        """How many events the attempt has streamed."""
        return self.first + len(self._events)

    @property
    def is_full(self) -> bool:
        """Whether the next event has to wait."""
        return len(self._events) >= MAX_WAITING or self._size >= self.max_characters

    @property
    def is_crowded(self) -> bool:
        """Whether events should be stored soon to make room."""
        most = min(MAX_MESSAGE_CHARACTERS, self.max_characters // 2)
        return len(self._events) >= MAX_WAITING // 4 or self._size > most

    @property
    def rest_fits(self) -> bool:
        """Whether the unsent events fit into one message."""
        return sum(event.size for event in self.unsent()) <= MAX_BATCH_CHARACTERS

    def append(self, event: StreamedEvent) -> None:
        """Add an event at the end."""
        self._events.append(event)
        self._size += event.size

    def unsent(self) -> Iterator[StreamedEvent]:
        """Iterate over the events that were not sent."""
        return islice(self._events, self.sent - self.first, None)

    def batch(self, start: int, *, limit: int) -> list[EventPayload]:
        """Return events from number `start` on: as many as have `limit` characters, or one that has more."""
        batch: list[EventPayload] = []
        total = 0
        for event in islice(self._events, start - self.first, None):
            if batch and total + event.size > limit:
                break
            batch.append(event.payload)
            total += event.size
        return batch

    def mark_sent(self, count: int) -> None:
        """Note that the first `count` events of the attempt were sent."""
        self.sent = max(self.sent, count)

    def drop(self, count: int) -> None:
        """Drop the first `count` events of the attempt, if they are still kept."""
        while self.first < count and self._events:
            self._size -= self._events.popleft().size
            self.first += 1

    def clear(self) -> None:
        """Drop all events; the unsent ones are lost."""
        self._events.clear()
        self._size = 0
        self.first = self.sent


def report_message(report: AttemptEvents) -> QueueMessage:
    """Return the message that carries a report to the control plane."""
    ends = isinstance(report, AttemptOutcome)
    action = ActionTypes.COMPLETED_TASK if ends else ActionTypes.TASK_STREAM
    return QueueMessage(type=CONTROL_PLANE, action=action, data=report.model_dump(mode="json"))


@dataclass(slots=True, eq=False)
class AttemptReports:
    """Publishes the events of one attempt, in order, each once. `close` it."""

    key: AttemptKey
    publish: Callable[[QueueMessage], Awaitable[None]]
    """Sends a message. Returns when it is accepted, raises when it is rejected permanently."""
    keep_published: bool = False
    """Keep published events until the run's journal has stored them too (`stored`).

    A step's events are then durable together with its result, whatever the queue loses.
    """
    asked: OpenQuestions | None = None
    """What the run waits for, reported with the events of a run without a journal. None: nothing is."""
    max_characters: int = MAX_SHARE
    """How much text of events is kept before `add` waits."""
    steps: StepHistory = field(default_factory=StepHistory, init=False)
    """The steps of the attempt. Those that no journal write has told travel with the outcome."""
    progress: ProgressText = field(init=False)
    """What the run says of its progress; it travels with the next message."""
    _buffer: EventBuffer = field(init=False)
    _is_wait_due: bool = field(default=False, init=False)
    """Whether what the run waits for is to be reported."""
    _ending: bool = field(default=False, init=False)
    _worker: asyncio.Task[None] | None = field(default=None, init=False)
    _failure: LlamaDeployError | None = field(default=None, init=False)
    _room: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        """Begin with room for events."""
        self._buffer = EventBuffer(max_characters=self.max_characters)
        self._room.set()
        self.progress = ProgressText(self._start)

    async def add(self, event: StreamedEvent) -> None:
        """Add an event. Waits while the buffer is full.

        Raises:
            LlamaDeployError: An earlier event was rejected permanently, for example as too large.
            ClosedError: The attempt has ended.
        """
        async with self._turn:  # first come, first served
            await self._room.wait()
            if self._failure is not None:
                raise self._failure
            self._buffer.append(event)
            self._update_room()
            self._start()

    def tell_waits(self) -> None:
        """Report what the run waits for, which has no journal."""
        if self._failure is None:
            self._is_wait_due = True
            self._start()

    def _start(self) -> None:
        """Send what waits."""
        if not self._ending and (self._worker is None or self._worker.done()):
            self._worker = asyncio.create_task(self._drain(), name=f"events-{self.key.task_id}")

    @property
    def count(self) -> int:
        """How many events the attempt has streamed."""
        return self._buffer.count

    @property
    def is_crowded(self) -> bool:
        """Whether the journal should store events soon to make room."""
        return self.keep_published and self._buffer.is_crowded

    def keep_nothing(self) -> None:
        """Drop published events at once from now on: the run no longer has a journal."""
        self.keep_published = False
        self._drop(self._buffer.sent)

    def not_stored(self) -> tuple[int, list[EventPayload]]:
        """Return how many events are stored, and the following ones, as many as one journal write holds."""
        first = self._buffer.first
        return first, self._buffer.batch(first, limit=MAX_MESSAGE_CHARACTERS)

    def stored(self, count: int) -> None:
        """Note that the control plane has stored the first `count` events of the attempt."""
        self._buffer.mark_sent(count)
        self._drop(count)

    async def settle(self) -> tuple[int, list[EventPayload]]:
        """Wait until no message is on its way.

        Returns:
            How many events were sent, and the remaining ones, which travel with the outcome.

        Raises:
            LlamaDeployError: An event was rejected permanently.
        """
        self._ending = True
        self.progress.close()
        if self._worker is not None:
            await asyncio.wait([self._worker])
        if self._failure is not None:
            raise self._failure
        return self._buffer.sent, [event.payload for event in self._buffer.unsent()]

    async def finish(self, outcome: RunOutcome, session_state: dict[str, Any] | None) -> AttemptOutcome:
        """Publish the attempt's outcome with the events that were not sent yet.

        If something is rejected permanently, for example a result that is too large, the attempt fails.

        Args:
            outcome: How the run has ended.
            session_state: Changes of the session's state.

        Raises:
            LlamaDeployError: Even the failure is rejected.
        """
        try:
            first, events = await self.settle()
        except LlamaDeployError as exc:
            self._buffer.clear()
            outcome, session_state, first, events = RunOutcome.failed(exc), None, self._buffer.sent, []
        published = self._outcome(outcome, session_state, first=first, events=events)
        try:
            await self.publish(report_message(published))
        except LlamaDeployError as exc:
            published = self._outcome(RunOutcome.failed(exc), None, first=first, events=[])
            await self.publish(report_message(published))
        return published

    async def close(self) -> None:
        """Stop publishing; unsent events are lost, and no further ones are accepted. Idempotent."""
        if self._failure is None:
            self._failure = ClosedError("the attempt has ended")
        self._room.set()
        self.progress.close()
        if self._worker is not None and not self._worker.done():
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _drain(self) -> None:
        buffer = self._buffer
        while self._has_more():
            first, batch = buffer.sent, buffer.batch(buffer.sent, limit=MAX_BATCH_CHARACTERS)
            waits, progress = self._next_waits(), self.progress.take()
            if not batch and waits is None and progress is None:
                continue
            report = AttemptEvents(
                task_id=self.key.task_id,
                attempt=self.key.attempt,
                token=self.key.token,
                first=first,
                events=batch,
                waits=waits,
                progress=progress,
            )
            try:
                await self.publish(report_message(report))
            except LlamaDeployError as exc:
                self._failure = exc
                self._room.set()
                return
            buffer.mark_sent(first + len(batch))
            if waits is not None and self.asked is not None:
                self.asked.stored(waits)
            if not self.keep_published:
                self._drop(buffer.sent)

    def _has_more(self) -> bool:
        """Whether a message is to be sent before the outcome."""
        buffer = self._buffer
        if self._ending:
            return buffer.count > buffer.sent and not buffer.rest_fits
        return buffer.count > buffer.sent or self._is_wait_due or self.progress.is_due

    def _next_waits(self) -> WaitReport | None:
        self._is_wait_due = False
        if self.asked is None or self.keep_published or self._ending:
            return None
        self._is_wait_due = self.asked.is_crowded
        return self.asked.report()

    def _outcome(
        self,
        outcome: RunOutcome,
        session_state: dict[str, Any] | None,
        *,
        first: int,
        events: list[EventPayload],
    ) -> AttemptOutcome:
        return AttemptOutcome(
            task_id=self.key.task_id,
            attempt=self.key.attempt,
            token=self.key.token,
            first=first,
            events=events,
            status=outcome.status,
            result=outcome.result,
            text_parts=outcome.text_parts,
            value=outcome.value,
            value_type=outcome.value_type,
            error=outcome.error,
            terminal_event=outcome.terminal_event,
            event_value=outcome.event_value,
            history=outcome.history,
            data=outcome.data,
            session_state=session_state,
            progress=self.progress.text,
            steps=self.steps.untold(),
        )

    def _drop(self, count: int) -> None:
        self._buffer.drop(count)
        self._update_room()

    def _update_room(self) -> None:
        if self._buffer.is_full:
            self._room.clear()
        else:
            self._room.set()
