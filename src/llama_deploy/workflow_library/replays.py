"""The ticks of a run, applied one by one to the present code, without running a step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from workflows import Workflow
from workflows.context import BaseSerializer
from workflows.context.context_types import SerializedContext
from workflows.runtime.control_loop import rebuild_state_from_ticks
from workflows.runtime.types.internal_state import BrokerState, InProgressState
from workflows.runtime.types.ticks import TickStepResult, WorkflowTick, WorkflowTickAdapter

from llama_deploy.workflow_library.renewal import renewed
from llama_deploy.workflow_library.run_state import run_state
from llama_deploy.workflow_library.snapshots import Snapshot
from llama_deploy.workflow_library.step_needs import narrowed
from llama_deploy.workflow_library.waiter_ids import WaiterIds


@dataclass(frozen=True, slots=True)
class ReplayedTick:
    """A tick that was applied, or could not be."""

    step: str | None
    """The step that ends with it. None: none does."""
    event: str | None
    """The class of the event with which the step worked."""
    fault: str | None = None
    """Why the present code does not lead to it. None: it does. It is the last one otherwise."""


def replayed(
    workflow: Workflow,
    *,
    snapshot: Snapshot | None,
    ticks: Sequence[str],
    steps: Collection[str] | None,
    renewals: Collection[int],
    serializer: BaseSerializer,
) -> Iterator[ReplayedTick]:
    """Apply ticks to a workflow and yield each; see `restore` for the arguments.

    Raises:
        ValueError: The snapshot does not fit the workflow.
    """
    broker = BrokerState.from_workflow(workflow)
    if snapshot is not None:
        run = SerializedContext.model_validate_json(snapshot.run)
        broker = BrokerState.from_serialized(run, workflow, serializer)
    state = run_state(broker if steps is None else narrowed(broker, steps))
    waiter_ids = WaiterIds()
    for number, text in enumerate(ticks):
        if number in renewals:
            state = renewed(state)
        try:
            with serializer.validation_context():
                tick = waiter_ids.in_tick(WorkflowTickAdapter.validate_python(serializer.deserialize(text)))
        except (ValueError, TypeError) as exc:
            yield ReplayedTick(None, None, f"a value of the run cannot be read: {exc}")
            return
        step, event = _named(tick)
        fault = _fault(state, tick) if isinstance(tick, TickStepResult) else None
        if fault is None:
            try:
                state = rebuild_state_from_ticks(state, [tick])
            except (ValueError, KeyError, IndexError) as exc:
                fault = f"the workflow library cannot apply it: {exc}"
        yield ReplayedTick(step, event, fault)
        if fault is not None:
            return


def _named(tick: WorkflowTick) -> tuple[str | None, str | None]:
    if not isinstance(tick, TickStepResult):
        return None, None
    return str(tick.step_id), type(tick.event).__name__


def _fault(state: BrokerState, tick: TickStepResult) -> str | None:
    """Return why a step cannot end now."""
    event = type(tick.event).__name__
    worker = state.workers.get(tick.step_id)
    if worker is None:
        return f"there is no step {str(tick.step_id)!r}"
    if (running := _execution(worker.in_progress, tick)) is None:
        running_now = sorted(str(step) for step, each in state.workers.items() if each.in_progress)
        return (
            f"the step is not running with {event} at this place; running: {', '.join(running_now) or 'none'}"
        )
    if type(running.event) is not type(tick.event):
        return f"the step works on {type(running.event).__name__} at this place, and the run has {event}"
    return None


def _execution(running: Sequence[InProgressState], tick: TickStepResult) -> InProgressState | None:
    if tick.invocation_id is not None:
        return next((each for each in running if each.invocation_id == tick.invocation_id), None)
    return next((each for each in running if each.worker_id == tick.worker_id), None)
