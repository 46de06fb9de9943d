"""Running a workflow class with a new object for each run: what the objects share, and what releases them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from types import MethodType
from typing import Any, Final, NamedTuple

from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.plugins.basic import BasicRuntime
from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.plugin import ExternalRunAdapter, RegisteredWorkflow
from workflows.runtime.types.step_function import (
    StepWorkerFunction,
    as_step_worker_function,
    create_workflow_run_function,
)

from llama_deploy.workflow_library.run_state import run_state
from llama_deploy.workflow_library.run_store import start_run
from llama_deploy.workflow_library.unobserved_runs import (
    DISPATCHER,
    is_observed,
    run_unobserved,
    unobserved_step,
)
from llama_deploy.workflow_library.versions import private

_FIND: Final = "_get_steps"
_SHARED: Final = (_FIND, "_broker_config", "_broker_config_version", DISPATCHER)
_VALIDATION: Final = ("_validation_result", "_validated_version")
_CHECKS: Final = "_skip_graph_checks"
_NO_LIMIT: Final = nullcontext()

for _name in ("_get_broker_config", "_validate"):
    private(Workflow, _name)  # so that a missing one is reported at import
private(BasicRuntime, "_maybe_acquire_max_concurrent_runs")


class _Steps(NamedTuple):
    """How the library runs the steps of a class."""

    functions: dict[str, Callable[..., Any]]
    are_observed: bool
    runners: dict[str, StepWorkerFunction]


class ManyObjectsRuntime(BasicRuntime):
    """The library's basic runtime, for any number of objects of one workflow class.

    `num_concurrent_runs` limits the runs of all objects together, and nothing of the library keeps an object
    in memory after its run. Runs are only instrumented while a handler listens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._limit: asyncio.Semaphore | None = None
        self._steps = _Steps({}, are_observed=False, runners={})

    def register(self, workflow: Workflow) -> RegisteredWorkflow:
        """Return how the library runs `workflow`."""
        return RegisteredWorkflow(
            workflow=workflow, workflow_run_fn=partial(_run, workflow), steps=self._runners_of(workflow)
        )

    def _runners_of(self, workflow: Workflow) -> dict[str, StepWorkerFunction]:
        """Return what runs the steps of an object, which it finds itself when they are called."""
        functions = {
            name: getattr(each, "__func__", each) for name, each in private(workflow, _FIND)().items()
        }
        are_observed = is_observed()
        known = self._steps
        if functions != known.functions or are_observed != known.are_observed:
            make = as_step_worker_function if are_observed else unobserved_step
            runners = {name: make(function) for name, function in functions.items()}
            self._steps = known = _Steps(functions, are_observed, runners)
        return known.runners

    def run_workflow(
        self, run_id: str, workflow: Workflow, init_state: BrokerState, *rest: Any, **options: Any
    ) -> ExternalRunAdapter:
        """Start a run whose state is cheap to make and to copy."""
        adapter: ExternalRunAdapter = start_run(
            self, run_id, workflow, run_state(init_state), *rest, **options
        )
        return adapter

    def _maybe_acquire_max_concurrent_runs(  # type: ignore[override]
        self,
        workflow: Workflow,
        run_id: str,  # noqa: ARG002 - the library's signature
    ) -> AbstractAsyncContextManager[None]:
        most: int | None = private(workflow, "_num_concurrent_runs")
        if most is None:
            return _NO_LIMIT
        if self._limit is None:
            self._limit = asyncio.Semaphore(most)
        return self._limit


def _signature_of_runs() -> inspect.Signature:
    """Return the signature of the functions that run workflows, which the library looks at in each run."""
    return inspect.signature(create_workflow_run_function(_Smallest()))


async def _run(
    workflow: Workflow,
    init_state: BrokerState,
    start_event: StartEvent | None = None,
    tags: dict[str, Any] | None = None,
) -> StopEvent:
    if not is_observed():
        return await run_unobserved(workflow, init_state, start_event)
    run = create_workflow_run_function(workflow)
    run.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
    try:
        return await run(init_state, start_event, tags)
    finally:
        # The function refers to itself and to the workflow, which would have to wait for the collector.
        for cell in getattr(run, "__closure__", None) or ():
            if cell.cell_contents is run:
                del cell.cell_contents


def has_steps_of_its_own(workflow: Workflow) -> bool:
    """Return whether an object may have other steps than further objects of its class."""
    return private(type(workflow), _FIND) is not private(Workflow, _FIND) or any(
        type(value) is MethodType and hasattr(value, "_step_config") for value in vars(workflow).values()
    )


def describe_class(first: Workflow) -> None:
    """Find out once what `share_class` shares. What fails, with validation disabled, fails in the runs."""
    with suppress(Exception):
        private(first, "_validate")()
        private(first, "_get_broker_config")()


def make_like(first: Workflow, make: Callable[[], Workflow]) -> Workflow:
    """Call `make`. If it is the class of `first`, the library need not search for the steps of the object.

    Args:
        first: An object of the class, after `cache_steps`, without steps of its own.
        make: A class, or a function that returns a new workflow.
    """
    find = vars(first).get(_FIND)
    if make is not type(first) or find is None:
        return make()
    if make.__new__ is not object.__new__ or type(make).__call__ is not type.__call__:
        return make()  # the class has its own way to make objects
    workflow = object.__new__(type(first))
    vars(workflow)[_FIND] = find
    make.__init__(workflow)
    return workflow


def share_class(first: Workflow, workflow: Workflow) -> None:
    """Give an object what is known of its class, which takes longer to find out than a short run.

    Args:
        first: An object of the class, after `cache_steps`, `take_timeout` and `describe_class`.
        workflow: Another object, without steps of its own.
    """
    known, attributes = vars(first), vars(workflow)
    attributes.update({name: known[name] for name in _SHARED})
    if known[_CHECKS] == attributes[_CHECKS]:
        attributes.update({name: known[name] for name in _VALIDATION})


def shares_class(first: Workflow, workflow: Workflow) -> bool:
    """Return whether `share_class` was called for these objects."""
    return vars(workflow).get(_FIND) is vars(first)[_FIND]


def unshare_class(workflow: Workflow) -> None:
    """Let the library search for the steps of an object from `make_like`, which has steps of its own."""
    vars(workflow).pop(_FIND, None)


def library_attributes() -> frozenset[str]:
    """Return the names of the attributes that the library itself sets in each workflow."""
    return frozenset(vars(_Smallest())) | {_FIND}


class _Smallest(Workflow):
    """A workflow with no attributes but those of the library."""

    @step
    async def end(self, ev: StartEvent) -> StopEvent:  # noqa: ARG002 - the library requires a step
        return StopEvent()


_SIGNATURE: Final = _signature_of_runs()
