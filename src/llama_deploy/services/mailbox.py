"""The events that clients send to one running workflow.

Entries may arrive twice, late or out of order, over the instance's topic or with a heartbeat's answer; each
is handed to the workflow once, in the order of the inbox.

The library drops an event that no step takes at the moment. An answer that comes before the workflow has
asked for it with `ctx.wait_for_event` would be lost so; the mailbox keeps it, and offers it again each time
that a step has ended or begun to wait. To learn whether an event was dropped it sends a marker after it that
nobody takes: the library tells of dropped events in the run's own stream, in order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from workflows import Workflow
from workflows.events import Event, StepState, StepStateChanged, UnhandledEvent

from llama_deploy.errors import InvalidRequestError
from llama_deploy.services.payloads import EventRegistry
from llama_deploy.types.attempts import InboxEntry

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_000
"""The most events that wait until the workflow takes them; the control plane keeps the rest."""


class InboxMarker(Event):
    """Sent after an event to learn whether that was taken."""


_MARKER_NAME: Final = f"{InboxMarker.__module__}.{InboxMarker.__name__}"


class Mailbox:
    """Hands a task's inbox to its run.

    Args:
        task_id: The task, for the log.
        workflow: Its steps tell which events are always taken.
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
        self._ahead: dict[int, InboxEntry] = {}
        self._seen = 0
        self._untried: deque[Event] = deque()
        self._refused: deque[Event] = deque()
        self._offered: Event | None = None
        self._was_refused = False
        self._try_again = False
        self._selective: set[type[Event]] = set()

    def note_wait(self, event_type: type[Event], requirements: dict[str, Any]) -> None:
        """A step of the run begins to wait for an event."""
        if requirements:
            self._selective.add(event_type)

    def put(self, entry: InboxEntry) -> bool:
        """Take an entry; one that was seen before is ignored. Returns whether events wait for `deliver`."""
        if (
            entry.seq > self._seen
            and len(self._ahead) + len(self._untried) + len(self._refused) < MAX_WAITING
        ):
            self._ahead.setdefault(entry.seq, entry)
        before = self._seen
        while (following := self._ahead.pop(self._seen + 1, None)) is not None:
            self._seen += 1
            self._accept(following)
        if self._seen != before:
            self._on_seen(self._seen)
        return bool(self._untried)

    async def open(self, send: Callable[[Event], Awaitable[None]]) -> None:
        """The run has started: hand on what has come, with `send`."""
        self._send = send
        await self.deliver()

    async def deliver(self) -> None:
        """Hand on what has come since, unless the fate of an earlier event is not known yet."""
        if self._send is None:
            return
        while self._untried and self._offered is None:
            event = self._untried.popleft()
            if self._always_taken(event):
                await self._send(event)
            else:
                self._offered, self._was_refused, self._try_again = event, False, False
                await self._send(event)
                await self._send(InboxMarker())

    async def observe(self, event: Event) -> None:
        """Learn from an internal event of the run's stream."""
        if isinstance(event, UnhandledEvent):
            await self._on_unhandled(event)
        elif isinstance(event, StepStateChanged) and event.step_state is StepState.NOT_RUNNING:
            # The event whose fate is not known yet may have come too early for this very step.
            self._try_again = True
            # In front of later ones: the inbox's order is kept among the events that are offered.
            self._untried.extendleft(reversed(self._refused))
            self._refused.clear()
            await self.deliver()

    async def _on_unhandled(self, event: UnhandledEvent) -> None:
        offered = self._offered
        if offered is None:
            return
        if event.qualified_name == f"{type(offered).__module__}.{type(offered).__name__}":
            self._was_refused = True
        elif event.qualified_name == _MARKER_NAME:
            self._offered = None
            if self._was_refused:
                if self._try_again:
                    self._untried.appendleft(offered)
                else:
                    self._refused.append(offered)
            elif type(offered) not in self._selective:
                self._put_off(type(offered))
            await self.deliver()

    def _put_off(self, taken: type[Event]) -> None:
        """Keep further events of a class that was just taken until a step has ended.

        A step that waits without requirements would take the next one in place of the first.
        """
        self._refused.extend(event for event in self._untried if type(event) is taken)
        self._untried = deque(event for event in self._untried if type(event) is not taken)

    def _accept(self, entry: InboxEntry) -> None:
        try:
            self._untried.append(self._registry.decode(entry.event))
        except InvalidRequestError as exc:
            logger.warning(
                "dropped event %d for task %s: %s",
                entry.seq,
                self._task_id,
                exc,
                extra={"action": "drop_event", "task_id": self._task_id},
            )

    def _always_taken(self, event: Event) -> bool:
        """Whether some step takes the event whenever it comes."""
        # The configuration of the steps is private, as is the list of the steps itself.
        for step in self._workflow._get_steps().values():  # noqa: SLF001
            config = step._step_config  # noqa: SLF001
            accepted = tuple(cls for cls in config.accepted_events if isinstance(cls, type))
            if type(event) in accepted or (config.accept_event_subclasses and isinstance(event, accepted)):
                return True
        return False
