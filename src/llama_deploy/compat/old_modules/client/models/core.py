"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.client import Service, Session
from llama_deploy.client.aio.core import Core, ServiceCollection, SessionCollection

__all__ = ["Core", "Service", "ServiceCollection", "Session", "SessionCollection"]
