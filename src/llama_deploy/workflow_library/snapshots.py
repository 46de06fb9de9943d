"""A run as a snapshot, and a run restored from a snapshot and the ticks after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field
from workflows import Context, Workflow
from workflows.context import BaseSerializer
from workflows.context.context_types import SerializedContext
from workflows.events import Event
from workflows.plugins.basic import InternalAsyncioAdapter
from workflows.runtime.control_loop import rebuild_state_from_ticks
from workflows.runtime.control_loop.reduce import rewind_in_progress
from workflows.runtime.types.internal_state import BrokerState, EventAttempt, InProgressState
from workflows.runtime.types.plugin import InternalRunAdapter
from workflows.runtime.types.results import StepWorkerWaiter
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import (
    TickAddEvent,
    TickSessionStart,
    TickStepResult,
    WorkflowTick,
    WorkflowTickAdapter,
)

from llama_deploy.workflow_library.renewal import renewed
from llama_deploy.workflow_library.run_state import run_state
from llama_deploy.workflow_library.step_needs import narrowed, steps_with_work, widened
from llama_deploy.workflow_library.ticks import is_placeholder
from llama_deploy.workflow_library.versions import private
from llama_deploy.workflow_library.waiter_ids import WaiterIds


class WaiterDetails(BaseModel):
    """What the library omits when it writes a step that waits for an event."""

    step: str
    waiter_id: str
    requirements: str
    """What the event must hold, as the serializer wrote it."""
    timed_out: bool


class SentBefore(BaseModel):
    """What a run has received from a running step."""

    begin: str
    """The invocation id of the step."""
    events: list[str]
    """As the serializer wrote them."""


class Snapshot(BaseModel):
    """A run, without its state."""

    run: str
    """As the library writes it, JSON."""
    waiters: list[WaiterDetails]
    sent: list[SentBefore] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MadeSnapshot:
    """A snapshot that was made, and what it needs."""

    snapshot: Snapshot
    forget: Callable[[], None]
    """Lets the library forget the ticks before it."""
    steps: Mapping[str, AbstractSet[str]]
    """See `steps_with_work`."""
    awaited: Sequence[type[Event]]
    """The classes of the events that steps wait for."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A run that `resuming` resumes."""

    context: Context
    broker: BrokerState
    """The library's state of the run, complete; `context` does not hold all of it."""
    ticks: Sequence[WorkflowTick]
    """The ticks after the snapshot."""
    received: Mapping[str, Sequence[Event]]
    """What the run has received from steps that begin again, by their next invocation ids."""
    waiter_ids: WaiterIds
    """Translates the ids of waiting steps in what was stored."""


def forget_ticks(adapter: InternalRunAdapter) -> None:
    """Let the library forget what it keeps of a run for snapshots; none can be made any more."""
    private(adapter, "_queues").ticks.clear()


def snapshot(
    adapter: InternalRunAdapter,
    serializer: BaseSerializer,
    *,
    workflow: Workflow,
    idle: bool,
    received: Mapping[str, Sequence[Event]],
) -> MadeSnapshot | None:
    """Return a snapshot of a run.

    Args:
        adapter: The library's access to the run.
        serializer: Writes its events.
        workflow: Its workflow.
        idle: Require that the run waits for something from outside.
        received: What the run has received from running steps, by invocation id.

    Returns:
        None if the run has ended, is not idle but must be, or if the library cannot write it, as a run with
        child runs.
    """
    if not isinstance(adapter, InternalAsyncioAdapter):
        return None
    queues = private(adapter, "_queues")  # where the runtime keeps all ticks of a run
    state = rebuild_state_from_ticks(queues.init_state, queues.ticks, run_id=adapter.run_id)
    if state.children or not state.is_running or (idle and _is_busy(state)):
        return None
    details = [
        WaiterDetails(
            step=str(step_id),
            waiter_id=waiter.waiter_id,
            requirements=serializer.serialize(dict(waiter.requirements)),
            timed_out=waiter.timed_out,
        )
        for step_id, waiter in waiters(state)
    ]
    run = state.to_serialized(_EachOnce(serializer)).model_dump_json()
    count = len(queues.ticks)

    def forget() -> None:
        queues.init_state = state
        del queues.ticks[:count]

    sent = [
        SentBefore(begin=name, events=[serializer.serialize(event) for event in received[name]])
        for _, name in _invocations(state)
        if received.get(name)
    ]
    return MadeSnapshot(
        Snapshot(run=run, waiters=details, sent=sent),
        forget,
        steps=steps_with_work(workflow, state),
        awaited=[waiter.waiting_for_event for _, waiter in waiters(state)],
    )


class _EachOnce(BaseSerializer):
    """Writes each event once; each running step refers to all the events that it had collected before."""

    def __init__(self, serializer: BaseSerializer) -> None:
        self._serializer = serializer
        self._written: dict[int, tuple[Any, str]] = {}
        """Values, so that their ids stay theirs, and their texts."""

    def serialize(self, value: Any) -> str:
        found = self._written.get(id(value))
        if found is None:
            found = self._written[id(value)] = value, self._serializer.serialize(value)
        return found[1]

    def deserialize(self, value: str) -> Any:
        return self._serializer.deserialize(value)


def waiters(state: BrokerState) -> Iterator[tuple[StepId, StepWorkerWaiter[Event]]]:
    """Yield the steps of a run that wait for an event."""
    for step_id, worker in state.workers.items():
        for waiter in worker.collected_waiters:
            yield step_id, waiter


def work_items(state: BrokerState) -> Iterator[tuple[StepId, EventAttempt | InProgressState]]:
    """Yield the events that the steps of a run work on or have to."""
    for step_id, worker in state.workers.items():
        items: list[EventAttempt | InProgressState] = [*worker.queue, *worker.in_progress]
        for item in items:
            yield step_id, item


def _is_busy(state: BrokerState) -> bool:
    """Whether a step is running, or will run without anything from outside."""
    return bool(state.deliveries) or any(True for _ in work_items(state))


def restore(
    workflow: Workflow,
    *,
    snapshot: Snapshot | None,
    ticks: Sequence[str],
    steps: Collection[str] | None = None,
    renewals: Sequence[int] = (),
    state: dict[str, Any],
    serializer: BaseSerializer,
) -> Restored:
    """Return a run that `resuming` resumes.

    Args:
        workflow: The workflow.
        snapshot: What `snapshot` returned. None: the run is at its beginning.
        ticks: The ticks after it, as `serializer` wrote them.
        steps: The steps that the run has needed so far. A step that was added to the workflow since then gets
            none of the events in the ticks. None: all steps were there.
        renewals: After how many of the ticks the run was retried, in ascending order.
        state: The run's state in the library's form; empty for none.
        serializer: Reads the ticks and the snapshot.

    Raises:
        ValueError: They do not match this workflow.
        SerializationError: A value in them cannot be read.
    """
    received: dict[str, list[Event]] = {}
    waiter_ids = WaiterIds()
    if snapshot is None:
        broker = BrokerState.from_workflow(workflow)
    else:
        run = SerializedContext.model_validate_json(snapshot.run)
        broker = BrokerState.from_serialized(run, workflow, serializer)
        _complete(broker, snapshot.waiters, serializer)
        for _, waiter in waiters(broker):
            waiter_ids.learn(waiter.waiting_for_event)
            waiter.waiter_id = waiter_ids.local(waiter.waiter_id)
        received = {
            each.begin: [serializer.deserialize(event) for event in each.events] for each in snapshot.sent
        }
    with serializer.validation_context():
        parsed = [
            waiter_ids.in_tick(WorkflowTickAdapter.validate_python(serializer.deserialize(tick)))
            for tick in ticks
        ]
    if parsed and steps is not None:
        replayed, received = _replayed(run_state(narrowed(broker, steps)), parsed, received, renewals)
        broker = widened(replayed, workflow)
    else:
        broker, received = _replayed(run_state(broker), parsed, received, renewals)
    _unite(broker)
    # The library does this first when a run is resumed; it chooses the same invocation ids.
    following, _ = rewind_in_progress(broker, 0.0)
    context = broker.to_serialized(serializer)
    context.state = state
    return Restored(
        Context.from_dict(workflow, context.model_dump(), serializer=serializer),
        broker,
        parsed,
        _renamed(received, broker, following),
        waiter_ids,
    )


def _complete(state: BrokerState, details: Sequence[WaiterDetails], serializer: BaseSerializer) -> None:
    """Restore what the library's own snapshot omits of waiting steps."""
    known = {(each.step, each.waiter_id): each for each in details}
    for step_id, waiter in waiters(state):
        if (missing := known.get((str(step_id), waiter.waiter_id))) is not None:
            waiter.requirements = serializer.deserialize(missing.requirements)
            waiter.timed_out = missing.timed_out


def _replayed(
    state: BrokerState,
    ticks: Sequence[WorkflowTick],
    received: dict[str, list[Event]],
    renewals: Sequence[int],
) -> tuple[BrokerState, dict[str, list[Event]]]:
    """Return what `_received` does for a run that was retried after so many ticks each."""
    begin = 0
    for end in renewals:
        state, received = _received(state, ticks[begin:end], received)
        state, begin = renewed(state), end
    return _received(state, ticks[begin:], received)


def _received(
    state: BrokerState, ticks: Sequence[WorkflowTick], received: dict[str, list[Event]]
) -> tuple[BrokerState, dict[str, list[Event]]]:
    """Return a run after ticks, and what it has received from running steps, by invocation id.

    Args:
        state: The run before the ticks.
        ticks: The ticks.
        received: What it had received before them.
    """
    since: list[WorkflowTick] = []
    for tick in ticks:
        if isinstance(tick, TickSessionStart):
            before = rebuild_state_from_ticks(state, since)
            state, since = rebuild_state_from_ticks(before, [tick]), []
            received = _renamed(received, before, state)
            continue
        since.append(tick)
        if isinstance(tick, TickAddEvent):
            if tick.emission is not None and not is_placeholder(tick):
                received.setdefault(tick.emission.invocation_id, []).append(tick.event)
        elif isinstance(tick, TickStepResult):
            received.pop(tick.invocation_id or "", None)
    return rebuild_state_from_ticks(state, since), received


def _renamed(
    received: dict[str, list[Event]], before: BrokerState, after: BrokerState
) -> dict[str, list[Event]]:
    """Return what was received from steps by the invocation ids that they have after they began again."""
    names = {place: name for place, name in _invocations(after) if place is not None}
    return {
        names[place]: received[name]
        for place, name in _invocations(before)
        if place in names and name in received
    }


def _invocations(state: BrokerState) -> Iterator[tuple[tuple[StepId, str] | None, str]]:
    """Yield what each running step works on, which stays when it begins again, and its invocation id."""
    for step_id, worker in state.workers.items():
        for item in worker.in_progress:
            if item.invocation_id is not None:
                place = None if item.work_item_id is None else (step_id, item.work_item_id)
                yield place, item.invocation_id


def _unite(state: BrokerState) -> None:
    """Let everything that belongs to one work item of a step refer to the same event object again."""
    events: dict[tuple[StepId, str], Event] = {}
    for step_id, item in (*work_items(state), *waiters(state)):
        if item.work_item_id is not None:
            item.event = events.setdefault((step_id, item.work_item_id), item.event)
