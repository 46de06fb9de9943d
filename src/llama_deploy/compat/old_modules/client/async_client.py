"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.compat.async_client import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    AsyncLlamaDeployClient,
    AsyncSessionClient,
)

__all__ = ["DEFAULT_POLL_INTERVAL", "DEFAULT_TIMEOUT", "AsyncLlamaDeployClient", "AsyncSessionClient"]
