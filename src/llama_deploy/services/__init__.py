"""Services: what runs tasks."""

from __future__ import annotations

from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.run.workflow_factory import AnyWorkflow
from llama_deploy.services.shell.base import BaseService
from llama_deploy.services.shell.workflow_service import WorkflowService
from llama_deploy.services.values.session_state import WorkflowState
from llama_deploy.services.values.streamed_item import StreamedItem

__all__ = [
    "AnyWorkflow",
    "BaseService",
    "ControlPlaneGateway",
    "HttpGateway",
    "StreamedItem",
    "WorkflowService",
    "WorkflowServiceConfig",
    "WorkflowState",
]
