"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.compat.async_client import DEFAULT_TIMEOUT
from llama_deploy.deploy import deploy_core, deploy_workflow

__all__ = ["DEFAULT_TIMEOUT", "deploy_core", "deploy_workflow"]
