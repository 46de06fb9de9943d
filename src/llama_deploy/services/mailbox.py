"""The events that clients send to one running workflow.

Entries may arrive twice, late or out of order, over the instance's topic or with a heartbeat's answer; each
is handed to the workflow once, in the order of the inbox.

The library drops an event that no step takes at the moment. An answer that comes before the workflow has
asked for it with `ctx.wait_for_event` would be lost so; the mailbox keeps it, and offers it again each time
that a step has ended or begun to wait. One event is offered at a time, and its fate is known before any step
starts.

The library would also run a step twice at once that gets a second answer while it works on the first. The
mailbox keeps such an answer until the step has come to its end, or to its next question.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workflows.events import Event, UnhandledEvent, WorkflowIdleEvent

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.payloads import EventRegistry
from llama_deploy.types.attempts import InboxEntry
from llama_deploy.workflow_library import (
    AddWaiter,
    BrokerState,
    DeleteWaiter,
    TickAddEvent,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
    waiters,
    work_items,
)

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""The most events that wait until the workflow takes them; the control plane keeps the rest."""


@dataclass(frozen=True, slots=True)
class _Letter:
    seq: int
    event: Event


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A step that waits for an event in its middle."""

    awaited: type[Event]
    requirements: dict[str, Any]
    begun: Event
    """With which the step has begun: this very object tells its results from those of others."""

    def takes(self, event: Event) -> bool:
        """Whether the library would run the step again with this event."""
        return isinstance(event, self.awaited) and all(
            getattr(event, name, None) == value for name, value in self.requirements.items()
        )


class Mailbox:
    """Hands a task's inbox to its run.

    Args:
        task_id: The task, for the log.
        registry: Decodes events.
        on_seen: Called with the number of the last entry that has arrived without a gap.
    """

    def __init__(self, *, task_id: str, registry: EventRegistry, on_seen: Callable[[int], None]) -> None:
        self._task_id = task_id
        self._registry = registry
        self._on_seen = on_seen
        self._send: Callable[[Event], Awaitable[None]] | None = None
        self._held = False
        self._ahead: dict[int, InboxEntry] = {}
        self._untried: deque[_Letter] = deque()
        self._refused: deque[_Letter] = deque()
        self._offered: _Letter | None = None
        self._arrived = False
        self._was_refused = False
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._answered: list[_Waiting] = []
        """Steps that have waited, and work on what they got."""
        self._taken: list[int] = []
        self.seen = 0
        """The number of the last entry that has arrived without a gap."""

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing that the run could take now."""
        return self._offered is None and self._next() is None

    def fill(self, entries: Sequence[InboxEntry], *, seen: int) -> None:
        """Take what the inbox holds at the start: all that was not taken by the run, up to number `seen`."""
        for entry in entries:
            self._accept(entry)
        self.seen = max([seen, *(entry.seq for entry in entries)])
        self._on_seen(self.seen)

    def put(self, entry: InboxEntry) -> bool:
        """Take an entry; one that was seen before is ignored. Returns whether events wait for `deliver`."""
        if entry.seq > self.seen and len(self._ahead) + len(self._untried) + len(self._refused) < MAX_WAITING:
            self._ahead.setdefault(entry.seq, entry)
        before = self.seen
        while (following := self._ahead.pop(self.seen + 1, None)) is not None:
            self.seen += 1
            self._accept(following)
        if self.seen != before:
            self._on_seen(self.seen)
        return bool(self._untried)

    def go_on(self, run: BrokerState) -> None:
        """Learn from what an earlier attempt has left which steps wait, and which have got their answer."""
        under_way = {item.work_item_id: item.event for item in work_items(run)}
        for step_id, waiter in waiters(run):
            begun = under_way.get(waiter.work_item_id, waiter.event)
            waiting = _Waiting(waiter.waiting_for_event, waiter.requirements, begun)
            self._waiting[str(step_id), waiter.waiter_id] = waiting
            if waiter.work_item_id in under_way:
                self._answered.append(waiting)

    async def open(self, send: Callable[[Event], Awaitable[None]]) -> None:
        """The run has started: hand on what has come, with `send`."""
        self._send = send
        await self.deliver()

    def hold(self) -> None:
        """Keep what comes, until `release`."""
        self._held = True

    async def release(self) -> None:
        """Hand on what was kept since `hold`."""
        self._held = False
        await self.deliver()

    async def deliver(self) -> None:
        """Hand on what has come since, unless the fate of an earlier event is not known yet."""
        if self._send is None or self._held or self._offered is not None:
            return
        letter = self._next()
        if letter is not None:
            self._untried.remove(letter)
            self._offered, self._arrived, self._was_refused = letter, False, False
            await self._send(letter.event)

    def take_consumed(self) -> list[int]:
        """Return the numbers of the entries that the run has taken since the last call."""
        taken, self._taken = self._taken, []
        return taken

    @property
    def has_consumed(self) -> bool:
        """Whether the run has taken entries since `take_consumed` was called."""
        return bool(self._taken)

    # -- what the run tells

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn that the run has come to an event, or that a step begins to wait for one."""
        if isinstance(tick, TickAddEvent):
            # The event of a tick is the very object that was sent.
            self._arrived = self._offered is not None and tick.event is self._offered.event
        elif isinstance(tick, TickWaiterTimeout):
            if (late := self._waiting.get((str(tick.step_id), tick.waiter_id))) is not None:
                self._answered.append(late)
        elif isinstance(tick, TickStepResult):
            self._answered = [each for each in self._answered if each.begun is not tick.event]
            for result in tick.result:
                if isinstance(result, AddWaiter):
                    waiting = _Waiting(result.event_type, result.requirements, tick.event)
                    self._waiting[str(tick.step_id), result.waiter_id] = waiting
                elif isinstance(result, DeleteWaiter):
                    self._waiting.pop((str(tick.step_id), result.waiter_id), None)

    def on_event(self, event: Event) -> None:
        """Learn that nobody has taken the event that the run has just come to, or that no step works."""
        if isinstance(event, WorkflowIdleEvent):
            self._answered.clear()
        if self._arrived and isinstance(event, UnhandledEvent):
            self._was_refused = True

    async def after_tick(self, tick: WorkflowTick) -> None:
        """Decide on the event that was offered, and offer again what was refused when a step has ended."""
        if self._arrived and self._offered is not None:
            self._settle(self._offered)
            self._offered, self._arrived = None, False
        elif isinstance(tick, TickStepResult):
            # In front of later ones: the inbox's order is kept among the events that are offered.
            self._untried.extendleft(reversed(self._refused))
            self._refused.clear()
        await self.deliver()

    def _settle(self, letter: _Letter) -> None:
        if self._was_refused:
            self._refused.append(letter)
            return
        self._taken.append(letter.seq)
        self._answered += [each for each in self._waiting.values() if each.takes(letter.event)]

    def _next(self) -> _Letter | None:
        """Return the first letter that can be offered now."""
        for letter in self._untried:
            if not any(each.takes(letter.event) for each in self._answered):
                return letter
        return None

    def _accept(self, entry: InboxEntry) -> None:
        try:
            self._untried.append(_Letter(entry.seq, self._registry.decode(entry.event)))
        except InvalidRequestError as exc:
            self._taken.append(entry.seq)
            logger.warning(
                "dropped event %d for task %s: %s",
                entry.seq,
                self._task_id,
                exc,
                extra={"action": "drop_event", "task_id": self._task_id},
            )
