"""Which steps of a workflow a run needs, by its state and by its ticks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from workflows import Workflow
from workflows._event_matching import event_matches
from workflows.decorators import StepConfig
from workflows.events import Event, HumanResponseEvent, StartEvent
from workflows.runtime.types.internal_state import BrokerState, InternalStepWorkerState
from workflows.runtime.types.ticks import TickAddEvent, TickStepResult, WorkflowTick

from llama_deploy.types.workflow_shape import StepShape
from llama_deploy.workflow_library.steps import bare_name, step_configs
from llama_deploy.workflow_library.ticks import events_of, is_placeholder


def step_shapes(workflow: Workflow) -> dict[str, StepShape]:
    """Return the steps of a workflow by name."""
    return {
        name: StepShape(
            takes=sorted(map(bare_name, config.accepted_events)),
            returns=sorted(map(bare_name, config.return_types)),
            workers=config.num_workers,
            takes_subclasses=config.accept_event_subclasses,
        )
        for name, config in sorted(step_configs(workflow).items())
    }


def steps_with_work(workflow: Workflow, state: BrokerState) -> dict[str, set[str]]:
    """Return the steps that a run needs from this state on, each with the names of the events it must take.

    These are the steps that have work, wait for something, have collected something, or collect what is sent
    in a fan-out, and the steps to which an event is on its way.
    """
    configs = step_configs(workflow)
    found: dict[str, set[str]] = {}
    for step_id, worker in state.workers.items():
        name = str(step_id)
        events = _events_in(worker)
        if name in configs and (events or worker.collected_events or worker.static_collect_events):
            found[name] = set().union(*(_taken(event, configs[name]) for event in events))
    for delivery in state.deliveries.values():
        for name, config in configs.items():
            taken = _taken(delivery.event, config)
            if taken and (delivery.step_id is None or str(delivery.step_id) == name):
                found.setdefault(name, set()).update(taken)
    if state.streams or state.collection_release_states:
        for name in _fan_out_steps(configs):
            found.setdefault(name, set())
    return found


def steps_in_ticks(workflow: Workflow, ticks: Iterable[WorkflowTick]) -> set[str]:
    """Return the steps that ticks have worked in, or have brought events to."""
    configs = step_configs(workflow)
    found = set(_fan_out_steps(configs))
    for tick in ticks:
        if isinstance(tick, TickStepResult):
            found.add(str(tick.step_id))
        elif isinstance(tick, TickAddEvent) and tick.step_id is not None:
            if not is_placeholder(tick):
                found.add(str(tick.step_id))
            continue
        for _, event in events_of(tick):
            found.update(name for name, config in configs.items() if _taken(event, config))
    return found & configs.keys()


def steps_with_answers(workflow: Workflow) -> dict[str, set[str]]:
    """Return the steps that take events from outside, each with their names.

    These are answers of people, and events that no step declares to return.
    """
    return {name: set(map(bare_name, events)) for name, events in _answers_by_step(workflow).items()}


def answer_classes(workflow: Workflow) -> list[type[Event]]:
    """Return the classes of the events that steps take from outside, each once."""
    return list(dict.fromkeys(each for events in _answers_by_step(workflow).values() for each in events))


def _answers_by_step(workflow: Workflow) -> dict[str, list[type[Event]]]:
    configs = step_configs(workflow)
    returned = tuple(each for config in configs.values() for each in config.return_types)

    def is_from_outside(event: Any) -> bool:
        if issubclass(event, HumanResponseEvent):
            return True
        is_returned = any(isinstance(each, type) and issubclass(each, event) for each in returned)
        return not (issubclass(event, StartEvent) or is_returned)

    outside = {
        name: [event for event in config.accepted_events if is_from_outside(event)]
        for name, config in configs.items()
    }
    return {name: events for name, events in outside.items() if events}


def narrowed(state: BrokerState, steps: Collection[str]) -> BrokerState:
    """Return a state that has these steps only: no event can reach another one."""
    kept = {step_id: config for step_id, config in state.config.steps.items() if str(step_id) in steps}
    return replace(
        state,
        config=replace(state.config, steps=kept),
        workers={step_id: worker for step_id, worker in state.workers.items() if step_id in kept},
    )


def widened(state: BrokerState, workflow: Workflow) -> BrokerState:
    """Return a state that has all steps of a workflow again."""
    whole = BrokerState.from_workflow(workflow)
    return replace(state, config=whole.config, workers=whole.workers | state.workers)


def _events_in(worker: InternalStepWorkerState) -> list[Event]:
    """Return the events with which a step works, is to work, or waits."""
    work = [each.event for each in worker.queue] + [each.event for each in worker.in_progress]
    return work + [each.event for each in worker.collected_waiters]


def _taken(event: Event, config: StepConfig) -> set[str]:
    """Return the names of the declared classes by which a step accepts an event. Empty: it does not."""
    return {
        bare_name(accepted)
        for accepted in config.accepted_events
        if event_matches(event, accepted, allow_subclasses=config.accept_event_subclasses)
    }


def _fan_out_steps(configs: dict[str, StepConfig]) -> list[str]:
    """Return the steps whose declarations decide how a fan-out is collected, or an error caught."""
    return [
        name
        for name, config in configs.items()
        if config.is_fan_out or config.collection_param is not None or config.role == "catch_error"
    ]
