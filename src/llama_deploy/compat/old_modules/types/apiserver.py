"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.client.definitions import ApiServerCondition as StatusEnum
from llama_deploy.client.definitions import ApiServerStatus as Status
from llama_deploy.client.definitions import DeploymentDefinition

__all__ = ["DeploymentDefinition", "Status", "StatusEnum"]
