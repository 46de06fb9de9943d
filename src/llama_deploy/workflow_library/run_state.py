"""The library's state of a run, with copies whose cost does not grow with the events that wait in it.

The library copies the state of a run for each tick, and with it one record for each event that waits. A
fan-out of n events costs n² records. The reducer changes few kinds of records; copies share the other ones.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final, TypeVar

from workflows.runtime.types.internal_state import (
    BrokerState,
    CollectionReleaseState,
    CollectionStreamInstance,
    Delivery,
    EventAttempt,
    InProgressState,
    InternalStepWorkerState,
)
from workflows.runtime.types.results import StepWorkerState, StepWorkerWaiter
from workflows.runtime.types.step_id import StepId

from llama_deploy.workflow_library.addressed_events import AddressedRequirements, address_of_wait
from llama_deploy.workflow_library.versions import private

Record = TypeVar("Record")

_KNOWN: Final[dict[type, str]] = {
    BrokerState: "is_running config workers stream_seq work_item_seq invocation_seq streams"
    " collection_release_states children elapsed_alive last_alive_stamp deliveries journal_seq",
    InternalStepWorkerState: "queue config in_progress collected_events collected_waiters"
    " static_collect_events collect_generations",
    InProgressState: "event worker_id shared_state attempts first_attempt_at last_exception last_failed_at"
    " recovery_counts bound_events scope_path work_item_id invocation_id received collect_generations",
    EventAttempt: "event bound_events attempts first_attempt_at last_exception last_failed_at recovery_counts"
    " not_before scope_path collection_release_payload work_item_id",
    StepWorkerWaiter: "waiter_id event waiting_for_event requirements has_requirements resolved_event"
    " bound_events timed_out scope_path collection_release_payload work_item_id",
    StepWorkerState: "step_name collected_events collected_waiters collection_release_payload scope_path"
    " work_item_id invocation_id",
    CollectionStreamInstance: "stream_id source_step scope_path open_work_items accepting_binding_ids",
    CollectionReleaseState: "binding_id stream_id buffer released",
    Delivery: "key event step_id recovery_counts scope_path",
}
"""The fields of the records that are copied here."""

IS_KNOWN: Final = all([each.name for each in fields(kind)] == known.split() for kind, known in _KNOWN.items())
"""Whether the records of the installed version are those that this module copies."""

for _kind in (InternalStepWorkerState, InProgressState):
    private(_kind, "_deepcopy")  # so that a missing one is reported at import


class RunState(BrokerState):
    """A state whose copies share the records that the library's reducer never changes."""

    def deepcopy(self) -> BrokerState:
        """Return a copy; see the module."""
        # Not by `__init__`, which looks at all steps to bring old states up to date.
        copied = _copy(self)
        copied.workers = {step_id: _copy_step(step_id, step) for step_id, step in self.workers.items()}
        copied.streams = {name: _copy(stream) for name, stream in self.streams.items()}
        copied.collection_release_states = {
            key: CollectionReleaseState(each.binding_id, each.stream_id, each.buffer.copy(), each.released)
            for key, each in self.collection_release_states.items()
        }
        copied.children = {key: child.deepcopy() for key, child in self.children.items()}
        copied.deliveries = self.deliveries.copy()
        return copied


class _StepState(InternalStepWorkerState):
    """The state of one step, with such copies."""

    def copied(self) -> _StepState:
        """Return a copy."""
        copied = self._deepcopy()
        # A delayed retry is marked when it becomes due; nothing else in a queue changes.
        copied.queue = [each if each.not_before is None else _copy(each) for each in self.queue]
        copied.in_progress = [_copy_running(each) for each in self.in_progress]
        copied.static_collect_events = self.static_collect_events.copy()
        copied.collect_generations = self.collect_generations.copy()
        return copied

    def _deepcopy(self) -> _StepState:
        """Return what the library shows to a step that starts: what was collected, and the waiters."""
        shown = _copy(self)
        shown.collected_events = {name: events.copy() for name, events in self.collected_events.items()}
        shown.collected_waiters = [_copy(each) for each in self.collected_waiters]
        return shown


def run_state(state: BrokerState) -> BrokerState:
    """Return the state of a run with cheap copies. With an unknown version of the library, as it is."""
    if not IS_KNOWN or isinstance(state, RunState):
        return state
    steps = {step_id: _StepState(**vars(step)) for step_id, step in state.workers.items()}
    return RunState(**{**vars(state), "workers": steps})


def _copy_step(step_id: StepId, step: InternalStepWorkerState) -> InternalStepWorkerState:
    copied = step.copied() if isinstance(step, _StepState) else step._deepcopy()  # noqa: SLF001
    for waiter in copied.collected_waiters:
        if not isinstance(waiter.requirements, AddressedRequirements):
            address = address_of_wait(str(step_id), waiter.waiter_id)
            waiter.requirements = AddressedRequirements(waiter.requirements, address)
    return copied


def _copy_running(running: InProgressState) -> InProgressState:
    """Copy a running step. What it sees of the run is replaced and never changed."""
    copied = _copy(running)
    copied.received = running.received.copy()
    return copied


def _copy(record: Record) -> Record:
    copied = object.__new__(type(record))
    vars(copied).update(vars(record))
    return copied
