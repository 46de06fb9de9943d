"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.services import WorkflowService, WorkflowServiceConfig, WorkflowState

__all__ = ["WorkflowService", "WorkflowServiceConfig", "WorkflowState"]
