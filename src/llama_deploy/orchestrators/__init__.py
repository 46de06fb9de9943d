"""Orchestrators choose the service for a task."""

from __future__ import annotations

from llama_deploy.orchestrators.base import BaseOrchestrator
from llama_deploy.orchestrators.simple import SimpleOrchestrator, SimpleOrchestratorConfig

__all__ = ["BaseOrchestrator", "SimpleOrchestrator", "SimpleOrchestratorConfig"]
