"""Services: what runs tasks."""

from __future__ import annotations

from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.shell.base import BaseService
from llama_deploy.services.shell.config import WorkflowServiceConfig
from llama_deploy.services.shell.workflow_service import WorkflowService
from llama_deploy.services.worker.attempt import WorkflowState

__all__ = [
    "BaseService",
    "ControlPlaneGateway",
    "HttpGateway",
    "WorkflowService",
    "WorkflowServiceConfig",
    "WorkflowState",
]
