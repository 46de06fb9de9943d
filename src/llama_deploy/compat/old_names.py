"""Where the names are that 0.6 had in modules which still exist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_WIRE: Final = "llama_deploy.compat.wire_models"
_STATUS: Final = "llama_deploy.types.apiserver"
_WIRE_NAMES: Final = (
    "CONTROL_PLANE_NAME",
    "HumanResponse",
    "PydanticValidatedUrl",
    "ToolCall",
    "ToolCallBundle",
    "ToolCallResult",
    "http_url_adapter",
)

SOURCES: Final[Mapping[tuple[str, str], str]] = {
    **{
        (module, name): _WIRE
        for module in ("llama_deploy.types", "llama_deploy.types.core")
        for name in _WIRE_NAMES
    },
    **{("llama_deploy.types", name): _STATUS for name in ("DeploymentDefinition", "Status", "StatusEnum")},
    ("llama_deploy.types", "ChatMessage"): "llama_index.core.llms",
    ("llama_deploy.types.core", "ChatMessage"): "llama_index.core.llms",
    ("llama_deploy.types.core", "ActionTypes"): "llama_deploy.types",
    ("llama_deploy.client", "AsyncLlamaDeployClient"): "llama_deploy.compat",
    ("llama_deploy.client", "LlamaDeployClient"): "llama_deploy.compat",
    ("llama_deploy.control_plane", "BaseControlPlane"): "llama_deploy.control_plane.base",
    ("llama_deploy.message_queues", "BaseMessageQueue"): "llama_deploy.compat.old_queue",
    ("llama_deploy.message_queues.base", "BaseMessageQueue"): "llama_deploy.compat.old_queue",
    ("llama_deploy.message_queues", "SolaceMessageQueue"): "llama_deploy.compat.solace",
    ("llama_deploy.message_queues", "SolaceMessageQueueConfig"): "llama_deploy.compat.solace",
}
"""The module that has a name now, by the old module and the name."""
