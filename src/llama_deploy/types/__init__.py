"""The wire models: what travels between clients, control plane, queue and services."""

from __future__ import annotations

from llama_deploy.renamed import old_names
from llama_deploy.types.actions import ActionTypes
from llama_deploy.types.ids import generate_id
from llama_deploy.types.services import BlockedStep, InstanceInfo, ServiceDefinition, StrandedTasks
from llama_deploy.types.sessions import (
    SessionDefinition,
    SessionFork,
    SessionOptions,
    SessionPage,
    SessionPolicy,
    SessionState,
    SessionSummary,
)
from llama_deploy.types.tasks import (
    Durability,
    EventDefinition,
    HistoryItem,
    HistoryPage,
    NewAttempt,
    StreamCursor,
    StreamedAttempt,
    TaskDefinition,
    TaskEvent,
    TaskFailure,
    TaskMove,
    TaskResult,
    TaskStatus,
    TaskStream,
    TaskSubmission,
    TaskView,
)

__all__ = [
    "ActionTypes",
    "BlockedStep",
    "Durability",
    "EventDefinition",
    "HistoryItem",
    "HistoryPage",
    "InstanceInfo",
    "NewAttempt",
    "ServiceDefinition",
    "SessionDefinition",
    "SessionFork",
    "SessionOptions",
    "SessionPage",
    "SessionPolicy",
    "SessionState",
    "SessionSummary",
    "StrandedTasks",
    "StreamCursor",
    "StreamedAttempt",
    "TaskDefinition",
    "TaskEvent",
    "TaskFailure",
    "TaskMove",
    "TaskResult",
    "TaskStatus",
    "TaskStream",
    "TaskSubmission",
    "TaskView",
    "generate_id",
]

__getattr__ = old_names(__name__, __path__)
