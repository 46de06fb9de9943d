"""What the steps of a run have sent while they are running.

A step that was running when its instance died begins again from its top, and sends again what it had sent
with `ctx.send_event`. An event equal to one that the run has received from this step before is dropped. The
order may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workflows.events import Event

from llama_deploy.workflow_library import (
    EmissionKey,
    TickAddEvent,
    TickStepResult,
    WorkflowTick,
    is_placeholder,
    placeholder,
    sent_placeholder,
)


class SentEvents:
    """The events that running steps have sent, by invocation id: the library's name for one start of a step.

    Args:
        earlier: The events that earlier attempts received from steps that begin again, by the id of the
            invocation that is next.
    """

    def __init__(self, earlier: Mapping[str, Sequence[Event]]) -> None:
        self.received: dict[str, list[Event]] = {name: list(events) for name, events in earlier.items()}
        """What the run has received from each running step, over all its invocations."""
        self._expected = {name: list(events) for name, events in earlier.items()}
        """What each step that began again has not repeated yet."""
        self._repeated: dict[EmissionKey, bool] = {}

    def replace_repeated(self, tick: WorkflowTick) -> WorkflowTick:
        """Return the tick of an event that a step sends, or a placeholder if the event is repeated."""
        if not isinstance(tick, TickAddEvent) or tick.emission is None:
            return tick
        self.received.setdefault(tick.emission.invocation_id, [])
        return placeholder(tick) if self._is_repeated(tick.emission, tick.event) else tick

    def on_tick(self, tick: WorkflowTick) -> None:
        """Learn what the run has received, and which steps have ended."""
        if isinstance(tick, TickAddEvent):
            if tick.emission is not None and not is_placeholder(tick):
                received = self.received.get(tick.emission.invocation_id)
                if received is not None:
                    received.append(tick.event)
        elif isinstance(tick, TickStepResult) and tick.invocation_id is not None:
            self.received.pop(tick.invocation_id, None)
            if self._expected.pop(tick.invocation_id, None) is not None:
                self._repeated = {
                    key: repeated
                    for key, repeated in self._repeated.items()
                    if key.invocation_id != tick.invocation_id
                }

    def replace_in_result(self, tick: TickStepResult) -> None:
        """Replace repeated events by placeholders in the result of a step that began again."""
        if tick.invocation_id is None or tick.invocation_id not in self._expected:
            return
        for place, sent in enumerate(tick.sends):
            if self._is_repeated(EmissionKey(tick.invocation_id, sent.index), sent.event):
                tick.sends[place] = sent_placeholder(sent)

    def _is_repeated(self, key: EmissionKey, event: Event) -> bool:
        expected = self._expected.get(key.invocation_id)
        if expected is None:
            return False
        if key not in self._repeated:
            place = next(
                (n for n, each in enumerate(expected) if type(each) is type(event) and each == event), None
            )
            if place is not None:
                del expected[place]
            self._repeated[key] = place is not None
        return self._repeated[key]
