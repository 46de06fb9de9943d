"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.client.aio.apiserver import ApiServer
from llama_deploy.client.aio.core import Core

__all__ = ["ApiServer", "Core"]
