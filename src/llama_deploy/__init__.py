"""Run agentic workflows as networked, durable, observable services.

Start here: `Client` runs tasks, `LocalStack` runs a whole system in one process, and `WorkflowService`,
`deploy_workflow` and `deploy_core` run its parts in processes of their own.

Each name below is imported when you first use it. `import llama_deploy` alone loads none of them, configures
no logging and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llama_deploy.client import Client, Session, SyncClient, TaskHandle
    from llama_deploy.compat import AsyncLlamaDeployClient, LlamaDeployClient
    from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
    from llama_deploy.deploy import LocalStack, deploy_core, deploy_workflow
    from llama_deploy.errors import (
        ConfigError,
        LlamaDeployError,
        ServiceNotFoundError,
        SessionBusyError,
        SessionNotFoundError,
        TaskCancelledError,
        TaskEndedError,
        TaskFailedError,
        TaskNotFoundError,
        TaskTimeoutError,
        UnavailableError,
    )
    from llama_deploy.message_consumers import CallableMessageConsumer
    from llama_deploy.message_queues import (
        SimpleMessageQueue,
        SimpleMessageQueueConfig,
        SimpleMessageQueueServer,
        config_from_url,
    )
    from llama_deploy.messages import QueueMessage
    from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
    from llama_deploy.services import BaseService, StreamedItem, WorkflowService, WorkflowServiceConfig
    from llama_deploy.types import NewAttempt, TaskEvent, TaskStatus, generate_id

__all__ = [
    "AsyncLlamaDeployClient",
    "BaseService",
    "CallableMessageConsumer",
    "Client",
    "ConfigError",
    "ControlPlaneConfig",
    "ControlPlaneServer",
    "LlamaDeployClient",
    "LlamaDeployError",
    "LocalStack",
    "NewAttempt",
    "QueueMessage",
    "ServiceNotFoundError",
    "Session",
    "SessionBusyError",
    "SessionNotFoundError",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
    "SimpleOrchestrator",
    "SimpleOrchestratorConfig",
    "StreamedItem",
    "SyncClient",
    "TaskCancelledError",
    "TaskEndedError",
    "TaskEvent",
    "TaskFailedError",
    "TaskHandle",
    "TaskNotFoundError",
    "TaskStatus",
    "TaskTimeoutError",
    "UnavailableError",
    "WorkflowService",
    "WorkflowServiceConfig",
    "config_from_url",
    "deploy_core",
    "deploy_workflow",
    "generate_id",
]

_MODULES: Final = {
    "client": ("Client", "Session", "SyncClient", "TaskHandle"),
    "compat": ("AsyncLlamaDeployClient", "LlamaDeployClient"),
    "control_plane": ("ControlPlaneConfig", "ControlPlaneServer"),
    "deploy": ("LocalStack", "deploy_core", "deploy_workflow"),
    "errors": (
        "ConfigError",
        "LlamaDeployError",
        "ServiceNotFoundError",
        "SessionBusyError",
        "SessionNotFoundError",
        "TaskCancelledError",
        "TaskEndedError",
        "TaskFailedError",
        "TaskNotFoundError",
        "TaskTimeoutError",
        "UnavailableError",
    ),
    "message_consumers": ("CallableMessageConsumer",),
    "message_queues": (
        "SimpleMessageQueue",
        "SimpleMessageQueueConfig",
        "SimpleMessageQueueServer",
        "config_from_url",
    ),
    "messages": ("QueueMessage",),
    "orchestrators": ("SimpleOrchestrator", "SimpleOrchestratorConfig"),
    "services": ("BaseService", "StreamedItem", "WorkflowService", "WorkflowServiceConfig"),
    "types": ("NewAttempt", "TaskEvent", "TaskStatus", "generate_id"),
}
"""The module that defines each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(_import(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _import(module: str) -> ModuleType:
    try:
        return import_module(f"{__name__}.{module}")
    except (ImportError, AttributeError) as exc:
        from llama_deploy.portability.module_names import imported_namesake  # noqa: PLC0415 - only for an error

        if (namesake := imported_namesake()) is None:
            raise
        raise ImportError(str(namesake)) from exc


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
