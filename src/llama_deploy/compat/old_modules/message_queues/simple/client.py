"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.message_queues.simple import SimpleMessageQueue

__all__ = ["SimpleMessageQueue"]
