"""The wire models under the module name that 0.6 programs import."""

from __future__ import annotations

from llama_deploy.renamed import old_names
from llama_deploy.types import (
    EventDefinition,
    ServiceDefinition,
    SessionDefinition,
    TaskDefinition,
    TaskResult,
    TaskStream,
    generate_id,
)

__all__ = [
    "EventDefinition",
    "ServiceDefinition",
    "SessionDefinition",
    "TaskDefinition",
    "TaskResult",
    "TaskStream",
    "generate_id",
]

__getattr__ = old_names(__name__)
