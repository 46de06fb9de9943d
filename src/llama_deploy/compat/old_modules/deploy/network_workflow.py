"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.compat.network_workflow import NetworkWorkflow

__all__ = ["NetworkWorkflow"]
