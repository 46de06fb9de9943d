"""Everything of the workflow library that is not its public API; other packages of ours use it from here.

The library documents runtimes as plug-ins, but a runtime needs names that may move between minor versions.
Importing this package checks them against the installed version. The tests of durable runs go through all of
it, with the oldest and the newest version that is allowed.

Raises:
    ConfigError: At import, if the installed version lacks something, or a file of the user has its name.
"""

from __future__ import annotations

from llama_deploy.workflow_library.versions import (
    UntestedLibraryWarning,
    check_namesake,
    library_version,
    unsupported,
    warn_if_untested,
)

check_namesake()

try:
    from workflows._event_matching import event_matches, step_accepts_event
    from workflows.context.state_store import DictState, StateStore, infer_state_type
    from workflows.events import DictLikeModel
    from workflows.plugins.basic import get_current_run_id
    from workflows.runtime.runtime_decorators import BaseInternalRunAdapterDecorator, BaseRuntimeDecorator
    from workflows.runtime.types.internal_state import BrokerState
    from workflows.runtime.types.named_task import (
        NamedTask,
        PendingStart,
        PendingWorker,
        PullTask,
        WorkerTask,
    )
    from workflows.runtime.types.plugin import (
        ExternalRunAdapter,
        InternalRunAdapter,
        RegisteredWorkflow,
        Runtime,
        WaitForNextTaskResult,
    )
    from workflows.runtime.types.results import (
        AddCollectedEvent,
        AddWaiter,
        DeleteWaiter,
        EmissionKey,
        StepWorkerFailed,
        StepWorkerResult,
        WaitingForEvent,
    )
    from workflows.runtime.types.step_function import StepWorkerFunction
    from workflows.runtime.types.step_id import StepId
    from workflows.runtime.types.ticks import (
        TickAddEvent,
        TickCancelRun,
        TickIdleCheck,
        TickStepResult,
        TickTimeout,
        TickWaiterTimeout,
        WorkflowTick,
    )

    from llama_deploy.workflow_library.addressed_events import address_event, address_of, address_of_wait
    from llama_deploy.workflow_library.event_parts import UNDECLARED, parts_of, set_parts
    from llama_deploy.workflow_library.many_objects import (
        ManyObjectsRuntime,
        describe_class,
        has_steps_of_its_own,
        library_attributes,
        make_like,
        share_class,
        shares_class,
        unshare_class,
    )
    from llama_deploy.workflow_library.replays import ReplayedTick, replayed
    from llama_deploy.workflow_library.snapshots import (
        MadeSnapshot,
        Snapshot,
        forget_ticks,
        restore,
        snapshot,
        waiters,
        work_items,
    )
    from llama_deploy.workflow_library.step_needs import (
        answer_classes,
        step_shapes,
        steps_in_ticks,
        steps_with_answers,
    )
    from llama_deploy.workflow_library.steps import (
        INVALID,
        OPTIONAL,
        abort,
        cache_steps,
        empty_context,
        failure_of,
        fingerprint,
        install_runtime,
        library_folders,
        result_of,
        resuming,
        state_seed,
        step_configs,
        steps_of,
        take_timeout,
        validate,
    )
    from llama_deploy.workflow_library.ticks import (
        events_of,
        execution_of,
        is_placeholder,
        placeholder,
        sent_placeholder,
        will_try_again,
    )
    from llama_deploy.workflow_library.unobserved_runs import leave_out_spans
    from llama_deploy.workflow_library.waiter_ids import stable_waiter_id
except ImportError as exc:
    raise unsupported(str(exc)) from exc

warn_if_untested()

__all__ = [
    "INVALID",
    "OPTIONAL",
    "UNDECLARED",
    "AddCollectedEvent",
    "AddWaiter",
    "BaseInternalRunAdapterDecorator",
    "BaseRuntimeDecorator",
    "BrokerState",
    "DeleteWaiter",
    "DictLikeModel",
    "DictState",
    "EmissionKey",
    "ExternalRunAdapter",
    "InternalRunAdapter",
    "MadeSnapshot",
    "ManyObjectsRuntime",
    "NamedTask",
    "PendingStart",
    "PendingWorker",
    "PullTask",
    "RegisteredWorkflow",
    "ReplayedTick",
    "Runtime",
    "Snapshot",
    "StateStore",
    "StepId",
    "StepWorkerFailed",
    "StepWorkerFunction",
    "StepWorkerResult",
    "TickAddEvent",
    "TickCancelRun",
    "TickIdleCheck",
    "TickStepResult",
    "TickTimeout",
    "TickWaiterTimeout",
    "UntestedLibraryWarning",
    "WaitForNextTaskResult",
    "WaitingForEvent",
    "WorkerTask",
    "WorkflowTick",
    "abort",
    "address_event",
    "address_of",
    "address_of_wait",
    "answer_classes",
    "cache_steps",
    "describe_class",
    "empty_context",
    "event_matches",
    "events_of",
    "execution_of",
    "failure_of",
    "fingerprint",
    "forget_ticks",
    "get_current_run_id",
    "has_steps_of_its_own",
    "infer_state_type",
    "install_runtime",
    "is_placeholder",
    "leave_out_spans",
    "library_attributes",
    "library_folders",
    "library_version",
    "make_like",
    "parts_of",
    "placeholder",
    "replayed",
    "restore",
    "result_of",
    "resuming",
    "sent_placeholder",
    "set_parts",
    "share_class",
    "shares_class",
    "snapshot",
    "stable_waiter_id",
    "state_seed",
    "step_accepts_event",
    "step_configs",
    "step_shapes",
    "steps_in_ticks",
    "steps_of",
    "steps_with_answers",
    "take_timeout",
    "unshare_class",
    "validate",
    "waiters",
    "will_try_again",
    "work_items",
]
