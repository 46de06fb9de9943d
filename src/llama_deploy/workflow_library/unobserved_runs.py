"""Runs without the library's instrumentation, while no handler listens to it.

For each run and each step the library makes spans, tags and events with summaries of what goes in and out,
also if nothing takes them. That takes longer than a short step. Handlers may be added at any time: runs that
begin after that are instrumented as usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any, Final, TypeVar

from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import Dispatcher
from llama_index_instrumentation.event_handlers import NullEventHandler
from llama_index_instrumentation.span_handlers import NullSpanHandler
from workflows import Context, Workflow
from workflows.context.internal_context import InternalContext
from workflows.events import StartEvent, StopEvent
from workflows.runtime.control_loop import control_loop
from workflows.runtime.types import step_function
from workflows.runtime.types.internal_state import BrokerState
from workflows.runtime.types.plugin import RunContext, run_context
from workflows.runtime.types.step_function import StepWorkerFunction, as_step_worker_function

from llama_deploy.workflow_library.versions import private

F = TypeVar("F", bound=Callable[..., Any])

DISPATCHER: Final = "_dispatcher"
"""The attribute of a workflow object that makes spans of its steps."""
_RUNS: Final = get_dispatcher(step_function.__name__)
"""The library tells this dispatcher of runs, and of what steps return."""
_DEAF: Final = (NullEventHandler, NullSpanHandler)
_NOTHING: Final = nullcontext()

_create_context: Final = private(Context, "_create_internal")


def is_observed(dispatcher: Dispatcher = _RUNS) -> bool:
    """Return whether a handler listens to what a dispatcher is told; the default is that of runs."""
    current: Dispatcher | None = dispatcher
    while current is not None:
        for handler in (*current.event_handlers, *current.span_handlers):
            if type(handler) not in _DEAF:
                return True
        current = current.parent if current.propagate else None
    return False


class _StepSpans:
    """Stands in for the dispatcher of workflow objects, of which the library uses only `span`."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def span(self, function: F) -> F:
        """Make a span of each call, if a handler listens."""
        if not is_observed(self._dispatcher):
            return function
        spanned: F = self._dispatcher.span(function)  # type: ignore[assignment]
        return spanned


def leave_out_spans(workflow: Workflow) -> None:
    """Make no spans of the steps of an object while no handler listens. Idempotent."""
    dispatcher = private(workflow, DISPATCHER)
    if isinstance(dispatcher, Dispatcher):
        vars(workflow)[DISPATCHER] = _StepSpans(dispatcher)


async def run_unobserved(
    workflow: Workflow, init_state: BrokerState, start_event: StartEvent | None = None
) -> StopEvent:
    """Run a workflow in the context of a run of the library's basic runtime."""
    runtime = workflow.runtime
    registered = runtime.get_or_register(workflow)
    context: Context = _create_context(workflow=workflow)
    adapter = runtime.get_internal_adapter(workflow)
    await asyncio.sleep(0)  # whoever starts the run gets its handler before anything happens
    run = RunContext(workflow=workflow, run_adapter=adapter, context=context, steps=registered.steps)
    try:
        with run_context(run):
            del run  # the control loop takes it, and releases it before steps start
            return await control_loop(start_event, init_state, adapter.run_id)
    finally:
        face = private(context, "_face")
        if isinstance(face, InternalContext):
            face.cancel_background_tasks()


def unobserved_step(function: Callable[..., Any]) -> StepWorkerFunction:
    """Return how the library runs a step, without tags and events for handlers."""
    step: StepWorkerFunction = _as_unobserved(function)
    return step


def _no_summary(_event: object) -> str:
    return ""


def _no_tags(_tags: Mapping[str, Any]) -> AbstractContextManager[None]:
    return _NOTHING


def _no_event(*_args: object, **_fields: object) -> None:
    return None


_LEFT_OUT: Final[dict[str, Callable[..., Any]]] = {
    "summarize_event": _no_summary,
    "instrument_tags": _no_tags,
    "WorkflowStepOutputEvent": _no_event,
    "_emit_output_event": _no_event,
}
"""What the library's code calls for handlers, by the names that it has there."""

for _name in _LEFT_OUT:
    private(step_function, _name)  # so that a missing one is reported at import

# The library's code itself, with these names bound to something else; its module stays unchanged.
_as_unobserved: Final = FunctionType(
    as_step_worker_function.__code__,
    {**vars(step_function), **_LEFT_OUT},
    as_step_worker_function.__name__,
)
