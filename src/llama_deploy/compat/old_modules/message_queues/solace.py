"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.compat.solace import SolaceMessageQueue, SolaceMessageQueueConfig

__all__ = ["SolaceMessageQueue", "SolaceMessageQueueConfig"]
