"""What the steps of a run have sent while they are under way.

A step that was under way when its instance died begins again from its top, and sends again what it had sent
with `ctx.send_event`. What is the same as an event that the run has received from it before is dropped; it
may come in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workflows.events import Event

from llama_deploy.workflow_library import (
    EmissionKey,
    TickAddEvent,
    TickStepResult,
    WorkflowTick,
    echo,
    echo_sent,
    is_echo,
)


class Sends:
    """What the steps under way have sent, by the library's names for their begins.

    Args:
        earlier: What was received before from steps that begin again, by the name of the begin that is next.
    """

    def __init__(self, earlier: Mapping[str, Sequence[Event]]) -> None:
        self.received: dict[str, list[Event]] = {name: list(events) for name, events in earlier.items()}
        """What the run has received from each step under way, over all its begins."""
        self._left = {name: list(events) for name, events in earlier.items()}
        self._verdicts: dict[EmissionKey, bool] = {}

    def pass_on(self, tick: WorkflowTick) -> WorkflowTick:
        """Return what is to be sent in place of what a step sends: the same, or an echo that nobody takes."""
        if not isinstance(tick, TickAddEvent) or tick.emission is None:
            return tick
        self.received.setdefault(tick.emission.invocation_id, [])
        return echo(tick) if self._is_repeated(tick.emission, tick.event) else tick

    def note(self, tick: WorkflowTick) -> None:
        """Learn what the run has received, and which steps are under way no more."""
        if isinstance(tick, TickAddEvent):
            if tick.emission is not None and not is_echo(tick):
                received = self.received.get(tick.emission.invocation_id)
                if received is not None:
                    received.append(tick.event)
        elif isinstance(tick, TickStepResult) and tick.invocation_id is not None:
            self.received.pop(tick.invocation_id, None)
            if self._left.pop(tick.invocation_id, None) is not None:
                self._verdicts = {
                    key: verdict
                    for key, verdict in self._verdicts.items()
                    if key.invocation_id != tick.invocation_id
                }

    def clean(self, tick: TickStepResult) -> None:
        """Let the result of a step that has begun again tell of echoes where it has sent them."""
        if tick.invocation_id is None or tick.invocation_id not in self._left:
            return
        for place, sent in enumerate(tick.sends):
            if self._is_repeated(EmissionKey(tick.invocation_id, sent.index), sent.event):
                tick.sends[place] = echo_sent(sent)

    def _is_repeated(self, key: EmissionKey, event: Event) -> bool:
        left = self._left.get(key.invocation_id)
        if left is None:
            return False
        if key not in self._verdicts:
            place = next(
                (n for n, each in enumerate(left) if type(each) is type(event) and each == event), None
            )
            if place is not None:
                del left[place]
            self._verdicts[key] = place is not None
        return self._verdicts[key]
