"""The events that clients send to one running workflow.

Entries may arrive twice, late or out of order, over the instance's topic or with the answer to a heartbeat.
Each is given to the workflow once, in the order of the inbox.

The library drops an event that no step takes at that moment. An answer that comes before the workflow asks
for it with `ctx.wait_for_event` would be lost. The inbox keeps such an event, and offers it again when a step
has begun to wait for it. One event is offered at a time, and it is known whether the run has taken it
before any step starts.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from workflows import Workflow
from workflows.events import Event, InputRequiredEvent, UnhandledEvent, WorkflowIdleEvent

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.run.inbox.asked_counts import AskedCounts
from llama_deploy.services.run.inbox.dead_ends import DeadEnds
from llama_deploy.services.run.inbox.offers import Offer, Offers
from llama_deploy.services.run.inbox.open_questions import OpenQuestions
from llama_deploy.services.run.inbox.questions import Questions
from llama_deploy.services.values.payloads import EventRegistry, StreamedEvent, rejection_event
from llama_deploy.types import EventDefinition
from llama_deploy.types.instance_protocol import InboxEntry
from llama_deploy.workflow_library import AddWaiter, BrokerState, TickAddEvent, TickStepResult, WorkflowTick

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""How many events may wait here until the workflow takes them; the control plane keeps the rest."""


@dataclass(slots=True)
class EntrySequence:
    """Puts inbox entries in order, and drops those that were seen before."""

    seen: int = 0
    """The number of the last entry up to which all have arrived."""
    _ahead: dict[int, InboxEntry] = field(default_factory=dict)
    """Entries behind a gap."""

    def add(self, entry: InboxEntry, *, room: int) -> list[InboxEntry]:
        """Add an entry and return the entries that are next in order.

        Args:
            entry: The entry.
            room: How many entries may wait behind a gap. An entry that finds no room is dropped: `seen` does
                not count it, so the control plane sends it again.
        """
        if entry.seq > self.seen and len(self._ahead) < room:
            self._ahead.setdefault(entry.seq, entry)
        following: list[InboxEntry] = []
        while (next_entry := self._ahead.pop(self.seen + 1, None)) is not None:
            self.seen += 1
            following.append(next_entry)
        return following


class RunInbox:
    """Gives the events of a task's inbox to its run.

    Args:
        task_id: The task, for the log.
        workflow: The task's workflow, whose steps may take events too.
        registry: Decodes events.
        on_seen: Called with the number of the last entry up to which all have arrived.
        entries: The entries at the start, in order: those that the run has not taken.
        seen: The number of the last entry that the control plane had at the start.
        begins_again: Whether the run starts from its beginning in a further attempt. The entries at the start
            may answer questions that it asks again.
        asked: Told what the run asks and takes, to report it. None: nothing is reported.
    """

    def __init__(
        self,
        *,
        task_id: str,
        workflow: Workflow,
        registry: EventRegistry,
        on_seen: Callable[[int], None],
        entries: Sequence[InboxEntry] = (),
        seen: int = 0,
        begins_again: bool = False,
        asked: OpenQuestions | None = None,
    ) -> None:
        self._asked = asked
        self._task_id = task_id
        self._registry = registry
        self._on_seen = on_seen
        self._send: Callable[[Event], Awaitable[None]] | None = None
        self._tell: Callable[[StreamedEvent], None] | None = None
        self._rejections: list[StreamedEvent] = []
        self.is_held = False
        """Whether nothing is delivered, see `hold`."""
        self._sequence = EntrySequence(max([seen, *(entry.seq for entry in entries)]))
        self._questions = Questions(workflow, asked)
        self._dead_ends = DeadEnds(workflow)
        self._offers = Offers(self._questions, last_earlier=self.seen if begins_again else 0, ids=asked)
        self._taken: list[int] = []
        for entry in entries:
            self._decode(entry)
        self._note_seen()

    @property
    def seen(self) -> int:
        """The number of the last entry up to which all have arrived."""
        return self._sequence.seen

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing that the run could take now."""
        return self._offers.is_quiet

    @property
    def has_asked(self) -> bool:
        """Whether the run has asked a question, other than those of `ctx.wait_for_event`."""
        return self._dead_ends.has_asked

    def dead_end(self) -> str | None:
        """Return why an idle run will not continue. None: it waits for something from outside."""
        return None if self._questions.is_any_open else self._dead_ends.reason()

    async def put(self, entry: InboxEntry) -> None:
        """Add an entry, unless it was seen before, and deliver what can be delivered."""
        entries = self._sequence.add(entry, room=MAX_WAITING - len(self._offers))
        for following in entries:
            self._decode(following)
        if entries:
            self._note_seen()
            self._tell_rejections()
        if self._offers:
            await self.deliver()

    @property
    def asked_counts(self) -> AskedCounts:
        """How often the run has asked under the same name."""
        return AskedCounts() if self._asked is None else self._asked.counts

    def resume(self, run: BrokerState, *, has_asked: bool, counts: AskedCounts | None = None) -> None:
        """Learn what a run that an earlier attempt has begun waits for, and what it has asked."""
        if self._asked is not None and counts is not None:
            self._asked.resume(counts)
        self._questions.resume(run)
        self._dead_ends.has_asked = has_asked

    async def open(
        self, send: Callable[[Event], Awaitable[None]], *, tell: Callable[[StreamedEvent], None]
    ) -> None:
        """Deliver what has come, and from now on what comes: the run has started.

        Args:
            send: Sends an event to the run.
            tell: Streams what became of an event that cannot be sent to the run.
        """
        self._send = send
        self._tell = tell
        self._tell_rejections()
        await self.deliver()

    def close(self) -> None:
        """Deliver nothing any more: the run has ended."""
        self._send = self._tell = None

    def hold(self) -> None:
        """Deliver nothing until `release`."""
        self.is_held = True

    async def release(self) -> None:
        """Deliver what has come since `hold`."""
        self.is_held = False
        await self.deliver()

    async def deliver(self) -> None:
        """Offer the run the next event, unless it has not yet come to an earlier one."""
        if self._send is None or self.is_held:
            return
        offer = self._offers.take()
        if offer is not None:
            await self._send(offer.event)

    def take_consumed(self) -> list[int]:
        """Return the numbers of the entries that the run has taken since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def before_tick(self) -> None:
        """The run processes its next tick now."""
        if self._offers.current is not None:
            self._offers.before_tick()

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn that the run has come to an event, to the end of a wait, or to the result of a step."""
        if isinstance(tick, TickAddEvent):
            self._offers.came_to(tick.event)
        if self._asked is not None:
            self._asked.on_tick(tick)
        self._questions.on_tick(tick)
        self._dead_ends.on_tick(tick)
        if isinstance(tick, TickStepResult) and any(isinstance(each, AddWaiter) for each in tick.result):
            self._offers.asked()

    def on_event(self, event: Event) -> None:
        """Learn that no step has taken the offered event, or that no step is running."""
        self._dead_ends.on_event(event)
        if self._asked is not None:
            self._asked.on_event(event)
        if isinstance(event, InputRequiredEvent | WorkflowIdleEvent):
            self._offers.asked()
        if isinstance(event, WorkflowIdleEvent):
            self._questions.on_idle()
        if isinstance(event, UnhandledEvent):
            self._offers.not_taken()

    async def after_tick(self, tick: WorkflowTick) -> None:
        """Settle the offered event, or offer dropped events again that a step has begun to wait for."""
        settled = self._offers.settle()
        if settled is not None:
            if settled.was_dropped and self._offers.is_for_one_wait(settled):
                self._reject(settled)
            elif not settled.was_dropped:
                self._taken.append(settled.seq)
                if self._asked is not None:
                    self._asked.on_taken(settled.question_id)
        elif isinstance(tick, TickStepResult):
            self._offers.offer_again()
        await self.deliver()

    def _reject(self, offer: Offer) -> None:
        """The step that waits for the answer does not take it: its fields are not those that it requires."""
        self._taken.append(offer.seq)
        if self._asked is not None and offer.question_id is not None:
            self._asked.on_rejected(offer.question_id)
        name = type(offer.event).__name__
        text = json.dumps({"type": name, "value": {}})
        sent = EventDefinition(event_obj_str=text, question_id=offer.question_id)
        reason = f"the step that waits for the {name} requires other values of its fields"
        self._rejections.append(rejection_event(sent, reason))
        self._tell_rejections()

    def _note_seen(self) -> None:
        self._on_seen(self.seen)
        if self._asked is not None:
            self._asked.on_seen(self.seen)

    def _decode(self, entry: InboxEntry) -> None:
        try:
            event = self._registry.decode(entry.event)
            self._offers.add(Offer(entry.seq, event, entry.event.question_id))
        except InvalidRequestError as exc:
            self._taken.append(entry.seq)
            if self._asked is not None and entry.event.question_id is not None:
                self._asked.on_rejected(entry.event.question_id)
            self._rejections.append(rejection_event(entry.event, str(exc)))
            logger.warning(
                "rejected event %d for task %s: %s",
                entry.seq,
                self._task_id,
                exc,
                extra={"action": "reject_event", "task_id": self._task_id},
            )

    def _tell_rejections(self) -> None:
        while self._rejections and self._tell is not None:
            self._tell(self._rejections.pop(0))
