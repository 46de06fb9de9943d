"""The ids that the library gives to waiting steps."""

from __future__ import annotations

import re
from typing import Final

from workflows.events import Event
from workflows.runtime.types.results import AddWaiter, DeleteWaiter
from workflows.runtime.types.ticks import TickStepResult, TickWaiterTimeout, WorkflowTick

_ID: Final = re.compile(r"waiter_[\w.]+\.(\w+)(_\{.*)", re.DOTALL)
_OF_WORK_ITEM: Final = re.compile(r"_\{.*\}_[^{}]+", re.DOTALL)
"""The end of an id that names the event with which the step began. Older releases of the library omit it."""


def stable_waiter_id(waiter_id: str) -> tuple[str, bool]:
    """Return an id as it is in each process, and whether no other wait of the run gets it."""
    found = _ID.fullmatch(waiter_id)
    if found is None:
        return waiter_id, False
    return f"{found[1]}{found[2]}", _OF_WORK_ITEM.fullmatch(found[2]) is not None


class WaiterIds:
    """Translates the ids of waiting steps to those that the library gives in this process.

    An id holds the name of the module of the event that the step waits for. Another process may know the same
    file under another name, such as `__main__`. A step that runs again would then not find what it has waited
    for. Ids that the workflow has chosen itself stay as they are.
    """

    def __init__(self) -> None:
        self._modules: dict[str, str] = {}

    def learn(self, event_type: type[Event]) -> None:
        """Note in which module an event's class is in this process."""
        self._modules[event_type.__name__] = event_type.__module__

    def local(self, waiter_id: str) -> str:
        """Return the id as this process gives it."""
        found = _ID.fullmatch(waiter_id)
        if found is None or found[1] not in self._modules:
            return waiter_id
        return f"waiter_{self._modules[found[1]]}.{found[1]}{found[2]}"

    def in_tick(self, tick: WorkflowTick) -> WorkflowTick:
        """Return a tick of a journal with the ids of this process; learn from it."""
        if isinstance(tick, TickWaiterTimeout):
            return tick.model_copy(update={"waiter_id": self.local(tick.waiter_id)})
        if not isinstance(tick, TickStepResult):
            return tick
        for each in tick.result:
            if isinstance(each, AddWaiter):
                self.learn(each.event_type)
        if not any(isinstance(each, AddWaiter | DeleteWaiter) for each in tick.result):
            return tick
        results = [
            each.model_copy(update={"waiter_id": self.local(each.waiter_id)})
            if isinstance(each, AddWaiter | DeleteWaiter)
            else each
            for each in tick.result
        ]
        return tick.model_copy(update={"result": results})
