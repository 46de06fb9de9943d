"""The events that clients send to one running workflow.

Entries may arrive twice, late or out of order, over the instance's topic or with a heartbeat's answer; each
is handed to the workflow once, in the order of the inbox.

The library drops an event that no step takes at the moment. An answer that comes before the workflow has
asked for it with `ctx.wait_for_event` would be lost so; the mailbox keeps it, and offers it again each time
that a step has ended or begun to wait. One event is offered at a time, and its fate is known before any step
starts.

The library keeps the question of a waiting step, with the answer, until the step has come to its end. Until
then each event that fits takes the place of the answer and runs the step again, beside the run that works on
the first, also while the step waits for its next answer or for its retry. The mailbox keeps such an event
until another question wants it or the step has ended: the first answer counts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workflows import Workflow
from workflows.events import Event, UnhandledEvent, WorkflowIdleEvent

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.values.payloads import EventRegistry
from llama_deploy.types.instance_protocol import InboxEntry
from llama_deploy.workflow_library import (
    AddWaiter,
    BrokerState,
    DeleteWaiter,
    StepWorkerResult,
    TickAddEvent,
    TickStepResult,
    TickWaiterTimeout,
    WorkflowTick,
    event_matches,
    step_accepts_event,
    step_configs,
    waiters,
    will_try_again,
    work_items,
)

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""The most events that wait until the workflow takes them; the control plane keeps the rest."""


@dataclass(frozen=True, slots=True)
class _Letter:
    seq: int
    event: Event


@dataclass(slots=True, eq=False)
class _Question:
    """For what a step has waited in its middle. The library knows it until the step has come to its end."""

    step: str
    awaited: type[Event]
    requirements: dict[str, Any]
    takes_subclasses: bool
    begun: Event
    """With which the step has begun: this very object tells its results from those of others."""
    is_answered: bool = False
    """Whether the event has come, or the time for it is over."""

    def takes(self, event: Event) -> bool:
        """Whether the library would run the step again with this event."""
        return event_matches(event, self.awaited, allow_subclasses=self.takes_subclasses) and all(
            getattr(event, name, None) == value for name, value in self.requirements.items()
        )

    def is_asked_in(self, step: str, begun: Event) -> bool:
        """Whether it belongs to what `step` makes of the event `begun`."""
        return self.step == step and self.begun is begun


class Mailbox:
    """Hands a task's inbox to its run.

    Args:
        task_id: The task, for the log.
        workflow: The task's workflow, whose steps may take events too.
        registry: Decodes events.
        on_seen: Called with the number of the last entry that has arrived without a gap.
    """

    def __init__(
        self, *, task_id: str, workflow: Workflow, registry: EventRegistry, on_seen: Callable[[int], None]
    ) -> None:
        self._task_id = task_id
        self._workflow = workflow
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
        self._questions: dict[tuple[str, str], _Question] = {}
        self._at_work: list[_Question] = []
        """A question for each run of a step that works on an answer, and has not come to rest."""
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
        asked: dict[tuple[str, str | None], _Question] = {}
        for step_id, waiter in waiters(run):
            question = self._question(
                str(step_id), waiter.waiting_for_event, waiter.requirements, waiter.event
            )
            question.is_answered = waiter.resolved_event is not None or waiter.timed_out
            self._questions[question.step, waiter.waiter_id] = question
            asked[question.step, waiter.work_item_id] = question
        for step_id, item in work_items(run):
            if (worked_on := asked.get((str(step_id), item.work_item_id))) is not None:
                self._at_work.append(worked_on)

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
        """Learn that the run has come to an event, to the end of a wait, or to the result of a step."""
        if isinstance(tick, TickAddEvent):
            # The event of a tick is the very object that was sent.
            self._arrived = self._offered is not None and tick.event is self._offered.event
            if tick.collection_release_payload is None:
                for question in self._questions.values():
                    if question.takes(tick.event):
                        self._answer(question)
        elif isinstance(tick, TickWaiterTimeout):
            late = self._questions.get((str(tick.step_id), tick.waiter_id))
            if late is not None and not late.is_answered:
                self._answer(late)
        elif isinstance(tick, TickStepResult):
            self._learn(tick)

    def on_event(self, event: Event) -> None:
        """Learn that nobody has taken the event that the run has just come to, or that no step works."""
        if isinstance(event, WorkflowIdleEvent):
            self._at_work.clear()
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

    def _learn(self, tick: TickStepResult) -> None:
        """Learn from a step's result which questions are open, and which are forgotten."""
        step = str(tick.step_id)
        # A step that waits for its retry has not come to rest.
        if not will_try_again(tick):
            runs = [each for each in self._at_work if each.is_asked_in(step, tick.event)]
            if runs:
                self._at_work.remove(runs[0])
        has_ended = any(isinstance(each, StepWorkerResult) for each in tick.result)
        for result in tick.result:
            if isinstance(result, AddWaiter):
                self._questions[step, result.waiter_id] = self._question(
                    step, result.event_type, result.requirements, tick.event
                )
            elif isinstance(result, DeleteWaiter) and has_ended:
                self._questions.pop((step, result.waiter_id), None)

    def _question(
        self, step: str, awaited: type[Event], requirements: dict[str, Any], begun: Event
    ) -> _Question:
        config = step_configs(self._workflow).get(step)
        takes_subclasses = config is not None and config.accept_event_subclasses
        return _Question(step, awaited, requirements, takes_subclasses, begun)

    def _answer(self, question: _Question) -> None:
        question.is_answered = True
        self._at_work.append(question)

    def _settle(self, letter: _Letter) -> None:
        if self._was_refused:
            self._refused.append(letter)
        else:
            self._taken.append(letter.seq)

    def _next(self) -> _Letter | None:
        """Return the first letter that can be offered now."""
        return next((letter for letter in self._untried if self._is_wanted(letter.event)), None)

    def _is_wanted(self, event: Event) -> bool:
        """Whether the run can do more with an event than to put it in the place of an earlier one."""
        fitting = [each for each in self._questions.values() if each.takes(event)]
        if any(self._works_on(each) for each in fitting):
            return False
        if not fitting or not all(each.is_answered for each in fitting):
            return True
        # The questions of a step that has failed for good are answered for ever, and must not keep an event
        # from a step that begins with it.
        return not any(self._goes_on(each) for each in fitting) and self._begins_a_step(event, fitting)

    def _works_on(self, question: _Question) -> bool:
        return any(each.is_asked_in(question.step, question.begun) for each in self._at_work)

    def _goes_on(self, question: _Question) -> bool:
        """Whether the step of an answered question waits for another answer."""
        return any(
            not each.is_answered and each.is_asked_in(question.step, question.begun)
            for each in self._questions.values()
        )

    def _begins_a_step(self, event: Event, fitting: Sequence[_Question]) -> bool:
        """Whether a step other than those of the questions begins with an event."""
        asking = {each.step for each in fitting}
        return any(
            step_accepts_event(event, config.accepted_events, allow_subclasses=config.accept_event_subclasses)
            for name, config in step_configs(self._workflow).items()
            if name not in asking
        )

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
