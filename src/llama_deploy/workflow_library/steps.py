"""The steps of a workflow, its time limit, and starting and aborting its runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

from workflows import Context, Workflow
from workflows.context import BaseSerializer
from workflows.context.context_types import SerializedContext
from workflows.decorators import StepConfig
from workflows.errors import WorkflowConfigurationError, WorkflowValidationError
from workflows.events import StopEvent
from workflows.handler import WorkflowHandler
from workflows.plugins.basic import ExternalAsyncioAdapter
from workflows.runtime.types.plugin import Runtime

from llama_deploy.workflow_library.versions import private

_TIMEOUT: Final = "__llama_deploy_timeout__"
INVALID: Final = (WorkflowConfigurationError, WorkflowValidationError)
"""What the library raises for a workflow that is not valid."""
OPTIONAL: Final = WorkflowValidationError
"""The one of them that `disable_validation=True` avoids."""
_CLASS_ATTRIBUTES: Final = ("_get_steps", "_switch_runtime", "_step_functions_version", "_validate")

for _name in _CLASS_ATTRIBUTES:
    private(Workflow, _name)  # so that a missing one is reported at import


def steps_of(workflow: Workflow) -> dict[str, Any]:
    """Return the functions of a workflow's steps by name, including those defined outside of its class."""
    return dict(private(workflow, "_get_steps")())


def validate(workflow: Workflow) -> None:
    """Check a workflow as its runs do: not if it was made with `disable_validation=True`.

    Raises:
        WorkflowValidationError: It is not valid.
        WorkflowConfigurationError: The same.
    """
    private(workflow, "_validate")()


def cache_steps(workflow: Workflow) -> None:
    """Cache the steps of `workflow`, which the library searches for in each run. Idempotent.

    The search takes longer than running a short step. Steps that are added to the class later are found.
    """
    cls = type(workflow)
    if "_get_steps" in vars(workflow):
        return
    find = private(workflow, "_get_steps")
    version, steps = -1, {}

    def get_steps() -> dict[str, Any]:
        nonlocal version, steps
        if version != cls._step_functions_version:
            version, steps = cls._step_functions_version, find()
        return dict(steps)

    vars(workflow)["_get_steps"] = get_steps


def step_configs(workflow: Workflow) -> dict[str, StepConfig]:
    """Return the library's settings of each step, by name."""
    return {name: private(step, "_step_config") for name, step in steps_of(workflow).items()}


def fingerprint(workflow: Workflow) -> str:
    """Return a digest of a workflow's steps with the events that they take and return.

    A run of which only this digest is known can only be resumed by a workflow with the same one: the library
    would silently drop work for steps that do not exist any more. The modules of the events do not count,
    because the name of a module depends on how the program was started.
    """
    steps = {
        name: {
            "takes": sorted(map(bare_name, config.accepted_events)),
            "returns": sorted(map(bare_name, config.return_types)),
        }
        for name, config in step_configs(workflow).items()
    }
    text = json.dumps(steps, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def bare_name(event: object) -> str:
    """Return the name of an event's class, without its module."""
    return getattr(event, "__qualname__", repr(event))


def install_runtime(workflow: Workflow, runtime: Runtime) -> None:
    """Let `workflow` run on `runtime` from now on, even if it has run on another one before."""
    # The library refuses once a workflow has run, because other runtimes register workflows elsewhere.
    vars(workflow)["_runtime_locked"] = False
    private(workflow, "_switch_runtime")(runtime)


def take_timeout(workflow: Workflow) -> float | None:
    """Take over a workflow's time limit in seconds; the library would also count the time of waiting.

    Doing it again returns the same value.
    """
    attributes = vars(workflow)
    if _TIMEOUT not in attributes:
        attributes[_TIMEOUT] = private(workflow, "_timeout")
        attributes["_timeout"] = None
        attributes["_broker_config"] = None
    timeout: float | None = attributes[_TIMEOUT]
    return timeout


def state_seed(text: str) -> dict[str, Any]:
    """Return a state, written by a serializer, in the form of the library's snapshots."""
    return {"store_type": "in_memory", "state_data": text}


def empty_context(workflow: Workflow, *, state: dict[str, Any], serializer: BaseSerializer) -> Context:
    """Return the context of a run that has not begun, with a state from `state_seed`."""
    return Context.from_dict(workflow, SerializedContext(state=state).model_dump(), serializer=serializer)


def resuming(workflow: Workflow, context: Context) -> Callable[[], WorkflowHandler]:
    """Return a function that resumes a restored run.

    A `run` method of the workflow's own is not called: it would begin another run.
    """

    def resume() -> WorkflowHandler:
        return Workflow.run(workflow, ctx=context)

    return resume


def result_of(handler: WorkflowHandler) -> asyncio.Future[StopEvent]:
    """Return the future with the result of a run. Cancelling it cancels the run."""
    result: asyncio.Future[StopEvent] = private(handler, "_result_task")
    return result


def failure_of(result: asyncio.Future[StopEvent]) -> BaseException | None:
    """Return the exception with which a run has ended, and let go of its frames, which refer to the run.

    `Future.exception` would keep them.
    """
    try:
        result.result()
    except BaseException as exc:  # noqa: BLE001 - returned
        # A variable with the frame of this function would be in the frame.
        return exc.with_traceback(None if exc.__traceback__ is None else exc.__traceback__.tb_next)
    return None


def abort(handler: WorkflowHandler) -> None:
    """End a run at once, without an event in its stream; its steps are cancelled."""
    adapter = private(handler, "_external_adapter")
    if isinstance(adapter, ExternalAsyncioAdapter):
        adapter.abort()


def library_folders() -> tuple[str, ...]:
    """Return the folders whose frames are in the traceback of every step: of the library, and of its use."""
    specs = [find_spec(name) for name in ("workflows", "llama_index_instrumentation")]
    folders = [
        folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or ()
    ]
    return tuple(folder + os.sep for folder in (*folders, os.path.dirname(__file__)))  # noqa: PTH120 - as in frames
