"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.client.aio.apiserver import ApiServer, Deployment, DeploymentCollection
from llama_deploy.client.aio.apiserver import DeploymentSessions as SessionCollection
from llama_deploy.client.aio.apiserver import DeploymentTask as Task
from llama_deploy.client.aio.apiserver import DeploymentTasks as TaskCollection

__all__ = ["ApiServer", "Deployment", "DeploymentCollection", "SessionCollection", "Task", "TaskCollection"]
