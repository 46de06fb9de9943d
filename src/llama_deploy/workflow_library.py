"""Everything of the workflow library that is not its public API; no other module of ours uses such parts.

The library documents runtimes as plug-ins, but a runtime needs names that may move between its minor
versions. They stand here, so that a new version is met in one place; the tests of durable runs go through
all of it with the oldest and the newest version that we allow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

from pydantic import BaseModel, Field
from workflows import Context, Workflow
from workflows._event_matching import event_matches, step_accepts_event
from workflows.context import BaseSerializer
from workflows.context.context_types import SerializedContext
from workflows.context.state_store import DictState, StateStore, infer_state_type
from workflows.decorators import StepConfig
from workflows.events import DictLikeModel, Event, InternalDispatchEvent
from workflows.handler import WorkflowHandler
from workflows.plugins.basic import (
    BasicRuntime,
    ExternalAsyncioAdapter,
    InternalAsyncioAdapter,
)
from workflows.runtime.control_loop import rebuild_state_from_ticks
from workflows.runtime.control_loop.reduce import rewind_in_progress
from workflows.runtime.runtime_decorators import BaseInternalRunAdapterDecorator, BaseRuntimeDecorator
from workflows.runtime.types.internal_state import BrokerState, EventAttempt, InProgressState
from workflows.runtime.types.named_task import NamedTask, PendingStart, PendingWorker, PullTask
from workflows.runtime.types.plugin import (
    ExternalRunAdapter,
    InternalRunAdapter,
    Runtime,
    WaitForNextTaskResult,
)
from workflows.runtime.types.results import (
    AddWaiter,
    DeleteWaiter,
    EmissionKey,
    SentEvent,
    StepWorkerFailed,
    StepWorkerResult,
    StepWorkerWaiter,
)
from workflows.runtime.types.step_id import StepId
from workflows.runtime.types.ticks import (
    TickAddEvent,
    TickCancelRun,
    TickIdleCheck,
    TickSessionStart,
    TickStepResult,
    TickTimeout,
    TickWaiterTimeout,
    WorkflowTick,
    WorkflowTickAdapter,
)

__all__ = [
    "AddWaiter",
    "BaseInternalRunAdapterDecorator",
    "BaseRuntimeDecorator",
    "BasicRuntime",
    "BrokerState",
    "DeleteWaiter",
    "DictLikeModel",
    "DictState",
    "EmissionKey",
    "ExternalRunAdapter",
    "InternalRunAdapter",
    "NamedTask",
    "PendingStart",
    "PendingWorker",
    "PullTask",
    "Restored",
    "Runtime",
    "Snapshot",
    "StateStore",
    "StepId",
    "StepWorkerResult",
    "TickAddEvent",
    "TickCancelRun",
    "TickIdleCheck",
    "TickStepResult",
    "TickTimeout",
    "TickWaiterTimeout",
    "WaitForNextTaskResult",
    "WaiterDetails",
    "WorkflowTick",
    "abort",
    "cache_steps",
    "empty_context",
    "event_matches",
    "events_of",
    "fingerprint",
    "infer_state_type",
    "install_runtime",
    "is_placeholder",
    "library_folders",
    "library_version",
    "placeholder",
    "restore",
    "resuming",
    "sent_placeholder",
    "snapshot",
    "state_seed",
    "step_accepts_event",
    "step_configs",
    "steps_of",
    "take_timeout",
    "waiters",
    "will_try_again",
    "work_items",
]

_TIMEOUT: Final = "__llama_deploy_timeout__"
_NO_STEP: Final = StepId.root("nobody")


def library_version() -> str:
    """Return the version of the workflow library."""
    return version("llama-index-workflows")


def steps_of(workflow: Workflow) -> dict[str, Any]:
    """Return the functions of a workflow's steps by name, those that stand outside of its class too."""
    return dict(workflow._get_steps())  # noqa: SLF001 - there is no public list of the steps


def cache_steps(workflow: Workflow) -> None:
    """Let the library find the steps of `workflow` without searching it again, as it does for each run.

    Searching all its members takes longer than running a short step. A step that is added to the class later
    is found all the same.
    """
    cls = type(workflow)
    if "_get_steps" in vars(workflow):
        return
    find = workflow._get_steps  # noqa: SLF001 - there is no public list of the steps
    version, steps = -1, {}

    def get_steps() -> dict[str, Any]:
        nonlocal version, steps
        if version != cls._step_functions_version:
            version, steps = cls._step_functions_version, find()
        return dict(steps)

    vars(workflow)["_get_steps"] = get_steps


def step_configs(workflow: Workflow) -> dict[str, StepConfig]:
    """Return what the library knows of each step, by name."""
    return {name: step._step_config for name, step in steps_of(workflow).items()}  # noqa: SLF001


def fingerprint(workflow: Workflow) -> str:
    """Return a digest of a workflow's steps with the events that they take and return.

    A run that was begun by a workflow with another digest cannot go on: the library would drop work for steps
    that are gone without a word.
    """
    steps = {
        name: {
            "takes": sorted(_name(event) for event in config.accepted_events),
            "returns": sorted(_name(event) for event in config.return_types),
        }
        for name, config in step_configs(workflow).items()
    }
    text = json.dumps(steps, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _name(event: object) -> str:
    # With the module: the library's names of waiting steps hold it, and are not found under another.
    return f"{getattr(event, '__module__', '')}.{getattr(event, '__qualname__', repr(event))}"


def install_runtime(workflow: Workflow, runtime: Runtime) -> None:
    """Let `workflow` run on `runtime` from now on, also if it has run on another before."""
    # The library refuses once a workflow has run, for the sake of runtimes that register elsewhere.
    vars(workflow)["_runtime_locked"] = False
    workflow._switch_runtime(runtime)  # noqa: SLF001 - what the library's own server calls


def take_timeout(workflow: Workflow) -> float | None:
    """Take a workflow's time limit, in seconds, from the library, which counts waiting for people too."""
    attributes = vars(workflow)
    if _TIMEOUT not in attributes:
        attributes[_TIMEOUT] = workflow._timeout  # noqa: SLF001 - it has no public name
        attributes["_timeout"] = None
        attributes["_broker_config"] = None
    timeout: float | None = attributes[_TIMEOUT]
    return timeout


def events_of(tick: WorkflowTick) -> Iterator[tuple[str, Event]]:
    """Yield the events that a tick holds, with their names for people."""
    if isinstance(tick, TickAddEvent):
        yield type(tick.event).__name__, tick.event
    elif isinstance(tick, TickStepResult):
        results = [each.result for each in tick.result if isinstance(each, StepWorkerResult)]
        for event in (*results, *(sent.event for sent in tick.sends)):
            if event is not None:
                yield f"the {type(event).__name__} of the step {tick.step_id}: $", event


def state_seed(text: str) -> dict[str, Any]:
    """Return a state, written by a serializer, as the library's snapshots hold it."""
    return {"store_type": "in_memory", "state_data": text}


def empty_context(workflow: Workflow, *, state: dict[str, Any], serializer: BaseSerializer) -> Context:
    """Return the context of a run that has not begun, with a state from `state_seed`."""
    return Context.from_dict(workflow, SerializedContext(state=state).model_dump(), serializer=serializer)


class WaiterDetails(BaseModel):
    """What the library leaves out when it writes down a step that waits in its middle."""

    step: str
    waiter_id: str
    requirements: str
    """What the event must hold, as the serializer wrote it."""
    timed_out: bool


class SentBefore(BaseModel):
    """What a run has received from a step that is under way."""

    begin: str
    """The library's name for the begin of the step."""
    events: list[str]
    """As the serializer wrote them."""


class Snapshot(BaseModel):
    """A run, without its state."""

    run: str
    """As the library writes it down, JSON."""
    waiters: list[WaiterDetails]
    sent: list[SentBefore] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Restored:
    """A run from which `resuming` goes on."""

    context: Context
    broker: BrokerState
    """What the library knows of the run; its own way of handing that on is not complete."""
    ticks: Sequence[WorkflowTick]
    """Those after the snapshot."""
    received: Mapping[str, Sequence[Event]]
    """What it has received from steps that begin again, by the library's names for their next begins."""


def snapshot(
    adapter: InternalRunAdapter,
    serializer: BaseSerializer,
    *,
    idle: bool,
    received: Mapping[str, Sequence[Event]],
) -> tuple[Snapshot, Callable[[], None]] | None:
    """Return a run as text, and what lets the library forget the ticks that led there.

    Args:
        adapter: The way into the run.
        serializer: Writes its events.
        idle: Whether only a run is wanted that waits for something from outside.
        received: What it has received from the steps under way, by the library's names for their begins.

    Returns:
        None if the run has ended, is not idle though it should be, or if the library cannot write such a run
        down yet, as one with child runs.
    """
    if not isinstance(adapter, InternalAsyncioAdapter):
        return None
    queues = adapter._queues  # noqa: SLF001 - where the runtime keeps the ticks of a run, for ever
    state = rebuild_state_from_ticks(queues.init_state, queues.ticks, run_id=adapter.run_id)
    if state.children or not state.is_running or (idle and _is_busy(state)):
        return None
    details = [
        WaiterDetails(
            step=str(step_id),
            waiter_id=waiter.waiter_id,
            requirements=serializer.serialize(waiter.requirements),
            timed_out=waiter.timed_out,
        )
        for step_id, waiter in waiters(state)
    ]
    run = state.to_serialized(serializer).model_dump_json()
    count = len(queues.ticks)

    def forget() -> None:
        queues.init_state = state
        del queues.ticks[:count]

    sent = [
        SentBefore(begin=name, events=[serializer.serialize(event) for event in received[name]])
        for _, name in _begins(state)
        if received.get(name)
    ]
    return Snapshot(run=run, waiters=details, sent=sent), forget


def waiters(state: BrokerState) -> Iterator[tuple[StepId, StepWorkerWaiter[Event]]]:
    """Yield the steps of a run that wait in their middle."""
    for step_id, worker in state.workers.items():
        for waiter in worker.collected_waiters:
            yield step_id, waiter


def work_items(state: BrokerState) -> Iterator[tuple[StepId, EventAttempt | InProgressState]]:
    """Yield what the steps of a run have to work on."""
    for step_id, worker in state.workers.items():
        items: list[EventAttempt | InProgressState] = [*worker.queue, *worker.in_progress]
        for item in items:
            yield step_id, item


def will_try_again(tick: TickStepResult) -> bool:
    """Whether a step has failed and will be run again by its retry policy."""
    decisions = [each.retry_decision for each in tick.result if isinstance(each, StepWorkerFailed)]
    return any(decision is not None and decision.delay is not None for decision in decisions)


def _is_busy(state: BrokerState) -> bool:
    """Whether a step is under way, or will be without anything from outside."""
    return bool(state.deliveries) or any(True for _ in work_items(state))


def restore(
    workflow: Workflow,
    *,
    snapshot: Snapshot | None,
    ticks: Sequence[str],
    state: dict[str, Any],
    serializer: BaseSerializer,
) -> Restored:
    """Return a run from which `resuming` goes on.

    Args:
        workflow: The workflow.
        snapshot: What `snapshot` returned. None: the run is at its beginning.
        ticks: The ticks after it, as `serializer` wrote them.
        state: The run's state in the library's form; empty for none.
        serializer: Reads the ticks and the snapshot.

    Raises:
        ValueError: They do not fit this workflow.
        SerializationError: A value in them cannot be read.
    """
    received: dict[str, list[Event]] = {}
    if snapshot is None:
        broker = BrokerState.from_workflow(workflow)
    else:
        run = SerializedContext.model_validate_json(snapshot.run)
        broker = BrokerState.from_serialized(run, workflow, serializer)
        _complete(broker, snapshot.waiters, serializer)
        received = {
            each.begin: [serializer.deserialize(event) for event in each.events] for each in snapshot.sent
        }
    with serializer.validation_context():
        past = [WorkflowTickAdapter.validate_python(serializer.deserialize(tick)) for tick in ticks]
    broker, received = _received(broker, past, received)
    _unite(broker)
    # What the library does first when a run goes on; it gives the same names to the begins of steps.
    following, _ = rewind_in_progress(broker, 0.0)
    context = broker.to_serialized(serializer)
    context.state = state
    return Restored(
        Context.from_dict(workflow, context.model_dump(), serializer=serializer),
        broker,
        past,
        _renamed(received, broker, following),
    )


def _complete(state: BrokerState, details: Sequence[WaiterDetails], serializer: BaseSerializer) -> None:
    """Give back to waiting steps what the library's own snapshot does not hold."""
    known = {(each.step, each.waiter_id): each for each in details}
    for step_id, waiter in waiters(state):
        if (missing := known.get((str(step_id), waiter.waiter_id))) is not None:
            waiter.requirements = serializer.deserialize(missing.requirements)
            waiter.timed_out = missing.timed_out


def _received(
    state: BrokerState, ticks: Sequence[WorkflowTick], received: dict[str, list[Event]]
) -> tuple[BrokerState, dict[str, list[Event]]]:
    """Return a run after ticks, and what it has received from the steps under way, by names of their begins.

    Args:
        state: The run before the ticks.
        ticks: The ticks.
        received: What it had received before.
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
    """Return what was received from steps by the names that they have when they have begun again."""
    names = {place: name for place, name in _begins(after) if place is not None}
    return {
        names[place]: received[name] for place, name in _begins(before) if place in names and name in received
    }


def _begins(state: BrokerState) -> Iterator[tuple[tuple[StepId, str] | None, str]]:
    """Yield for each step under way what it works on, which stays, and the name of this begin of it."""
    for step_id, worker in state.workers.items():
        for item in worker.in_progress:
            if item.invocation_id is not None:
                place = None if item.work_item_id is None else (step_id, item.work_item_id)
                yield place, item.invocation_id


def placeholder(tick: TickAddEvent) -> TickAddEvent:
    """Return what is sent in place of an event that the run has received before; no step takes it."""
    return TickAddEvent(event=InternalDispatchEvent(), step_id=_NO_STEP, emission=tick.emission)


def sent_placeholder(sent: SentEvent) -> SentEvent:
    """Do as `placeholder` in the result of a step."""
    return sent.model_copy(update={"event": InternalDispatchEvent(), "step_id": _NO_STEP})


def is_placeholder(tick: TickAddEvent) -> bool:
    """Whether a tick was made by `placeholder`."""
    return tick.step_id == _NO_STEP


def _unite(state: BrokerState) -> None:
    """Let all that belongs to one work item of a step hold the very same event again."""
    events: dict[tuple[StepId, str], Event] = {}
    for step_id, item in (*work_items(state), *waiters(state)):
        if item.work_item_id is not None:
            item.event = events.setdefault((step_id, item.work_item_id), item.event)


def resuming(workflow: Workflow, context: Context) -> Callable[[], Awaitable[WorkflowHandler]]:
    """Return what goes on with a restored run.

    A `run` of the workflow's own is passed by: it would begin another.
    """

    async def resume() -> WorkflowHandler:
        return Workflow.run(workflow, ctx=context)

    return resume


def abort(handler: WorkflowHandler) -> None:
    """End a run at once without a trace in its stream; its steps are cancelled."""
    adapter = handler._external_adapter  # noqa: SLF001 - `WorkflowHandler.cancel` is deprecated
    if isinstance(adapter, ExternalAsyncioAdapter):
        adapter.abort()


def library_folders() -> tuple[str, ...]:
    """Return the folders of the packages whose frames are in the traceback of every step."""
    specs = (find_spec(name) for name in ("workflows", "llama_index_instrumentation"))
    return tuple(
        folder + os.sep
        for spec in specs
        if spec is not None
        for folder in spec.submodule_search_locations or ()
    )
