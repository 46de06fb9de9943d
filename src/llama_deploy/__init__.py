"""Run agentic workflows as networked, durable, observable services.

Importing this package imports none of its parts, configures no logging and starts nothing: each name below
is imported when it is first used, so that a client does not load the servers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from llama_deploy.client import AsyncLlamaDeployClient, Client, LlamaDeployClient
    from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
    from llama_deploy.deploy import deploy_core, deploy_workflow
    from llama_deploy.message_consumers import CallableMessageConsumer
    from llama_deploy.message_queues import (
        SimpleMessageQueue,
        SimpleMessageQueueConfig,
        SimpleMessageQueueServer,
    )
    from llama_deploy.messages import QueueMessage
    from llama_deploy.orchestrators import SimpleOrchestrator, SimpleOrchestratorConfig
    from llama_deploy.services import BaseService, WorkflowService, WorkflowServiceConfig

__all__ = [
    "AsyncLlamaDeployClient",
    "BaseService",
    "CallableMessageConsumer",
    "Client",
    "ControlPlaneConfig",
    "ControlPlaneServer",
    "LlamaDeployClient",
    "QueueMessage",
    "SimpleMessageQueue",
    "SimpleMessageQueueConfig",
    "SimpleMessageQueueServer",
    "SimpleOrchestrator",
    "SimpleOrchestratorConfig",
    "WorkflowService",
    "WorkflowServiceConfig",
    "deploy_core",
    "deploy_workflow",
]

_HOMES: Final = {
    "AsyncLlamaDeployClient": "client",
    "BaseService": "services",
    "CallableMessageConsumer": "message_consumers",
    "Client": "client",
    "ControlPlaneConfig": "control_plane",
    "ControlPlaneServer": "control_plane",
    "LlamaDeployClient": "client",
    "QueueMessage": "messages",
    "SimpleMessageQueue": "message_queues",
    "SimpleMessageQueueConfig": "message_queues",
    "SimpleMessageQueueServer": "message_queues",
    "SimpleOrchestrator": "orchestrators",
    "SimpleOrchestratorConfig": "orchestrators",
    "WorkflowService": "services",
    "WorkflowServiceConfig": "services",
    "deploy_core": "deploy",
    "deploy_workflow": "deploy",
}
"""Which part of the package a name comes from."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})
