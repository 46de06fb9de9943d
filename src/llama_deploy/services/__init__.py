"""Services: what runs tasks."""

from __future__ import annotations

from llama_deploy.services.attempts import WorkflowState
from llama_deploy.services.base import BaseService
from llama_deploy.services.config import WorkflowServiceConfig
from llama_deploy.services.gateway import ControlPlaneGateway, HttpGateway
from llama_deploy.services.workflow import WorkflowService

__all__ = [
    "BaseService",
    "ControlPlaneGateway",
    "HttpGateway",
    "WorkflowService",
    "WorkflowServiceConfig",
    "WorkflowState",
]
